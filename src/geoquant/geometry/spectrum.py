"""How is the loss curved: its sharpest directions, and how all its eigenvalues are spread?

Top eigenvalues by Lanczos on Hessian-vector products, each with its residual. The whole density by
stochastic Lanczos quadrature: from a random direction v the Ritz values and weights are a Gauss quadrature
of v's spectral measure, whose mean over v is the density. Memory is one copy of the studied parameters per
Lanczos step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from geoquant.errors import GeoquantError
from geoquant.geometry.evidence import Estimate
from geoquant.geometry.hvp import GRAPH_COST, PRODUCT_COST, Part, products
from geoquant.geometry.lanczos import Lanczos, extreme_eigenvalues
from geoquant.geometry.objective import Chosen, Loss, Objective, make_objective
from geoquant.geometry.probes import gaussian
from geoquant.models import Forward
from geoquant.progress import task


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Join tensors into one row, (1, numbers).

    >>> flatten([torch.ones(2, 2), torch.zeros(1)]).shape
    torch.Size([1, 5])
    """
    return torch.cat([tensor.reshape(-1) for tensor in tensors]).unsqueeze(0)


def unflatten(row: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Cut a row back into tensors of the shapes of `like`."""
    parts = torch.split(row.reshape(-1), [tensor.numel() for tensor in like])
    return [part.view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]


class LossOperator:
    """The mean loss's Hessian (or a part) on flat rows (1, parameters), counting its applications."""

    def __init__(self, objective: Objective, part: Part) -> None:
        self._objective, self._part = objective, part
        self.applications = 0

    def __call__(self, row: Tensor) -> Tensor:
        """Multiply one flat row."""
        self.applications += 1
        return flatten(products(self._objective, [unflatten(row, self._objective.unique)], self._part)[0])

    def start(self, seed: int, probe: int) -> Tensor:
        """Return a random Gaussian row."""
        return flatten(gaussian(self._objective.unique, seed, probe))

    @property
    def cost(self) -> float:
        """Forward-equivalents spent."""
        return self.applications * (GRAPH_COST + PRODUCT_COST)


def top_eigenvalues(
    model: torch.nn.Module,
    batches: Sequence[Any],
    sites: Chosen = None,
    *,
    count: int = 1,
    part: Part = "hessian",
    forward: Forward | None = None,
    loss: str | Loss = "auto",
    tolerance: float = 1e-2,
    max_steps: int = 60,
    seed: int = 0,
) -> tuple[Estimate, ...]:
    """Return the largest eigenvalues of the mean loss's Hessian in the chosen parameters, descending.

    Args:
        model: any module; studied in eval mode, left as it was.
        batches: see `hessian_traces`.
        sites: the block of parameters; all when None. One layer gives that layer's own block.
        count: how many.
        part: ``"hessian"``, ``"gauss_newton"`` or ``"remainder"``.
        forward: how to call the model.
        loss: see `hessian_traces`.
        tolerance: residual to reach, as a share of the largest eigenvalue.
        max_steps: Hessian-vector products at most.
        seed: of the start.

    Returns:
        estimates whose `residual` bounds the distance to an eigenvalue.

    >>> layer = torch.nn.Linear(2, 1, bias=False).double()
    >>> data = [(torch.tensor([[3.0, 4.0]]).double(), torch.zeros(1, 1).double())]  # ½(w·x)²: λ = ‖x‖²
    >>> round(top_eigenvalues(layer, data)[0].value, 9)
    25.0
    """
    objective = make_objective(model, batches, sites, loss=loss, forward=forward)
    operator = LossOperator(objective, part)
    found = extreme_eigenvalues(
        operator, operator.start(seed, 0), count=count, tolerance=tolerance, max_steps=max_steps
    )
    return tuple(
        Estimate(float(value), cost=operator.cost, method=f"lanczos, {found.steps} steps", residual=float(residual))
        for value, residual in zip(found.values[0], found.residuals[0], strict=True)
    )


@dataclass(frozen=True, eq=False)
class SpectralDensity:
    """The distribution of a matrix's eigenvalues, as quadrature nodes.

    Attributes:
        nodes: (probes, steps) Ritz values; rows are padded with their last value at weight 0.
        weights: (probes, steps), each row sums to 1.
        size: number of eigenvalues.
        cost: forward-equivalents.
        residuals: (probes, steps), within which of each node an eigenvalue lies; infinite where padded.
    """

    nodes: Tensor
    weights: Tensor
    size: int
    cost: float
    residuals: Tensor | None = None

    def top(self, count: int = 1) -> tuple[Estimate, ...]:
        """Return the largest nodes of the first probe, descending: what `top_eigenvalues` finds in as many steps.

        >>> layer = torch.nn.Linear(2, 1, bias=False).double()
        >>> data = [(torch.tensor([[3.0, 4.0]]).double(), torch.zeros(1, 1).double())]
        >>> round(spectral_density(layer, data).top()[0].value, 9)
        25.0
        """
        if self.residuals is None:
            raise GeoquantError("this density was made without residuals; take it from spectral_density")
        pairs = zip(self.nodes[0].tolist(), self.residuals[0].tolist(), strict=True)
        found = [pair for pair in pairs if math.isfinite(pair[1])][::-1]
        method = f"lanczos, {len(found)} steps"
        return tuple(Estimate(value, cost=self.cost, method=method, residual=left) for value, left in found[:count])

    def moment(self, power: int) -> Estimate:
        """Return Σ λ^power with its standard error over probes; power 1 is the trace."""
        each = self.size * (self.weights * self.nodes**power).sum(1)
        probes = len(each)
        return Estimate(
            float(each.mean()),
            float(each.std() / math.sqrt(probes)),
            samples=probes,
            cost=self.cost,
            method="lanczos quadrature",
        )

    def curve(self, points: int = 256, width: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return (eigenvalues, density, its standard error over probes), smoothed by a Gaussian.

        Args:
            points: of the grid.
            width: standard deviation of the Gaussian; 1 % of the range when None.
        """
        low, high = float(self.nodes.min()), float(self.nodes.max())
        spread = max(high - low, abs(high), 1e-30)
        sigma = 0.01 * spread if width is None else width
        grid = torch.linspace(low - 0.05 * spread, high + 0.05 * spread, points, dtype=torch.float64)
        distance = (grid.view(-1, 1, 1) - self.nodes) / sigma
        each = (self.weights * (-0.5 * distance.square()).exp()).sum(-1) / (sigma * math.sqrt(2 * math.pi))
        return grid, each.mean(1), each.std(1) / math.sqrt(len(self.nodes))


def spectral_density(
    model: torch.nn.Module,
    batches: Sequence[Any],
    sites: Chosen = None,
    *,
    part: Part = "hessian",
    forward: Forward | None = None,
    loss: str | Loss = "auto",
    probes: int = 4,
    steps: int = 30,
    seed: int = 0,
) -> SpectralDensity:
    """Return the eigenvalue density of the mean loss's Hessian by stochastic Lanczos quadrature.

    Arguments as in `top_eigenvalues`; `steps` Hessian-vector products for each of at least two `probes`.
    Source: Ghorbani et al., arXiv 1901.10159.

    >>> layer = torch.nn.Linear(2, 1, bias=False).double()
    >>> data = [(torch.tensor([[3.0, 4.0]]).double(), torch.zeros(1, 1).double())]
    >>> density = spectral_density(layer, data)  # eigenvalues 25 and 0
    >>> sorted({round(abs(node), 6) for node in density.nodes.flatten().tolist()})
    [0.0, 25.0]
    """
    if probes < 2 or steps < 1:
        raise GeoquantError(f"probes={probes} and steps={steps}: use at least 2 probes and 1 step")
    objective = make_objective(model, batches, sites, loss=loss, forward=forward)
    operator = LossOperator(objective, part)
    size = sum(parameter.numel() for parameter in objective.unique)
    found = []
    with task("Lanczos quadrature", probes) as advance:
        for probe in range(probes):
            space = Lanczos(operator, operator.start(seed, probe))
            space.run(min(steps, size))
            found.append(space.ritz(0))
            advance()
    longest = max(len(ritz.values) for ritz in found)
    nodes = torch.stack([_padded(ritz.values, longest, float(ritz.values[-1])) for ritz in found])
    weights = torch.stack([_padded(ritz.weights, longest, 0.0) for ritz in found])
    residuals = torch.stack([_padded(ritz.residuals, longest, math.inf) for ritz in found])
    return SpectralDensity(nodes, weights, size, operator.cost, residuals)


def _padded(row: Tensor, length: int, fill: float) -> Tensor:
    return torch.cat([row, row.new_full((length - len(row),), fill)])
