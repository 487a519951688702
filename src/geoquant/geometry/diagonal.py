"""How curved is the loss in each single weight?

The diagonal of the Gauss-Newton matrix is the sum of squared per-sample gradients over the columns of S
(`geoquant.geometry.sweep`), exact with few classes. The Hessian's diagonal adds that of the remainder,
which is zero where the network is piecewise affine in the layer and otherwise the mean of v∘Rv over random
signs (Bekas et al. 2007). Diagonals say nothing of how two weights act together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from geoquant.errors import DataError, GeoquantError
from geoquant.geometry.gauss_newton import EXACT_COLUMNS
from geoquant.geometry.hvp import GRAPH_COST, PRODUCT_COST, Part, batch_product
from geoquant.geometry.objective import Chosen, Loss, Objective, make_objective
from geoquant.geometry.per_sample import sample_slices, summed_gradient
from geoquant.geometry.probes import signs
from geoquant.geometry.sweep import Arrival, Sweep, sweep
from geoquant.models import Forward
from geoquant.progress import task


@dataclass(frozen=True, eq=False)
class TensorEstimate:
    """An `Estimate` of a whole tensor, entry by entry.

    Attributes:
        value: in the shape of the parameter.
        stderr: likewise, 0 where nothing was drawn.
        exact: whether nothing was drawn.
        samples: probes averaged over, 0 when exact.
        cost: forward-equivalents.
        method: name of the method.
    """

    value: Tensor
    stderr: Tensor
    exact: bool
    samples: int
    cost: float
    method: str


def hessian_diagonal(
    model: torch.nn.Module,
    batches: Sequence[Any],
    sites: Chosen = None,
    *,
    forward: Forward | None = None,
    loss: str | Loss = "auto",
    probes: int = 32,
    seed: int = 0,
    exact_columns: int = EXACT_COLUMNS,
) -> dict[str, TensorEstimate]:
    """Return the diagonal of the mean loss's Hessian for each chosen parameter, in its shape.

    Arguments as in `hessian_traces`; a loss of one's own is probed without a Gauss-Newton part.

    >>> layer = torch.nn.Linear(2, 1, bias=False).double()
    >>> data = [(torch.tensor([[3.0, 4.0]]).double(), torch.zeros(1, 1).double())]
    >>> hessian_diagonal(layer, data)["weight"].value
    tensor([[ 9., 16.]], dtype=torch.float64)
    """
    if probes < 2:
        raise GeoquantError(f"probes={probes} gives no standard error; use at least 2")
    objective = make_objective(model, batches, sites, loss=loss, forward=forward)
    if objective.criterion is None:
        parts = [_probed(objective, "hessian", probes, seed)]
        known = [False] * len(objective.unique)
    else:
        gauss, affine = _gauss_newton(objective, probes, seed, exact_columns)
        known = [flag or objective.criterion.name == "kl" for flag in affine]
        parts = [gauss] if all(known) else [gauss, _probed(objective, "remainder", probes, seed)]
    return _named(objective, parts, known)


def gauss_newton_diagonal(
    model: torch.nn.Module,
    batches: Sequence[Any],
    sites: Chosen = None,
    *,
    forward: Forward | None = None,
    loss: str = "auto",
    probes: int = 32,
    seed: int = 0,
    exact_columns: int = EXACT_COLUMNS,
) -> dict[str, TensorEstimate]:
    """Return the diagonal of the Gauss-Newton matrix for each chosen parameter; arguments as above."""
    objective = make_objective(model, batches, sites, loss=loss, forward=forward)
    gauss, _ = _gauss_newton(objective, probes, seed, exact_columns)
    return _named(objective, [gauss], [True] * len(objective.unique))


@dataclass(eq=False)
class _Sums:
    """Running sums of a diagonal and of the variance of what was drawn, by parameter."""

    value: list[Tensor]
    variance: list[Tensor]
    drawn: list[bool]
    probes: int
    count: float = 0.0
    cost: float = 0.0

    @staticmethod
    def zeros(objective: Objective, probes: int) -> _Sums:
        zeros = [torch.zeros_like(parameter, dtype=torch.float64) for parameter in objective.unique]
        return _Sums(zeros, [zero.clone() for zero in zeros], [False] * len(zeros), probes)

    def add_draws(self, place: int, draws: _Draws) -> None:
        self.value[place] += draws.mean
        self.variance[place] += draws.squares / (draws.count * (draws.count - 1))
        self.drawn[place] = True


class _Draws:
    """Welford's mean and sum of squares of tensors, float64 where the parameter lives."""

    def __init__(self, like: Tensor) -> None:
        self.count = 0
        self.mean = torch.zeros_like(like, dtype=torch.float64)
        self.squares = torch.zeros_like(self.mean)

    def add(self, draw: Tensor) -> None:
        self.count += 1
        step = draw.double() - self.mean
        self.mean += step / self.count
        self.squares += step * (draw.double() - self.mean)


def _named(objective: Objective, parts: Sequence[_Sums], first_only: Sequence[bool]) -> dict[str, TensorEstimate]:
    if any(part.count == 0 for part in parts):
        raise DataError("no prediction to average over: every position is masked")
    cost = sum(part.cost for part in parts)
    found = {}
    for name, place in zip(objective.names, objective.position, strict=True):
        used = parts[:1] if first_only[place] else parts
        value = torch.stack([part.value[place] / part.count for part in used]).sum(0)
        variance = torch.stack([part.variance[place] / part.count**2 for part in used]).sum(0)
        drawn = any(part.drawn[place] for part in used)
        method = "squared per-sample gradients" if not drawn else "sign probes"
        found[name] = TensorEstimate(value, variance.sqrt(), not drawn, parts[0].probes if drawn else 0, cost, method)
    return found


def _gauss_newton(objective: Objective, probes: int, seed: int, exact_columns: int) -> tuple[_Sums, list[bool]]:
    sums = _Sums.zeros(objective, probes)
    affine = [True] * len(objective.unique)
    rows = 0
    with objective.studied(), task("Gauss-Newton diagonal", len(objective.batches)) as advance:
        for index, batch in enumerate(objective.batches):
            run = sweep(objective, batch)
            affine = [old and new for old, new in zip(affine, run.structure.affine, strict=True)]
            passes = 2.0
            if any(run.covered):
                passes += 2.0 * _add_covered(sums, run, probes, seed, index, exact_columns)
            if run.loose:
                passes += 2.0 * probes
                _add_loose(sums, run, probes, seed, index)
            sums.count += run.scored.count
            sums.cost += passes * run.samples
            rows += run.samples
            advance()
    sums.cost /= rows
    return sums, affine


def _add_covered(sums: _Sums, run: Sweep, probes: int, seed: int, index: int, exact_columns: int) -> int:
    """Add Σ over samples of squared gradients; return the number of directions."""
    enumerated, directions = run.enumerable(exact_columns), 0
    draws = {place: _Draws(parameter) for place, parameter in enumerate(run.objective.unique)}
    for size, arrivals in run.arrivals(run.columns() if enumerated else run.signs(probes, seed, index)):
        directions += size
        for arrival in arrivals:
            squares = _squares(arrival, run.samples)
            if enumerated:
                sums.value[arrival.place] += squares.sum(0)
            else:
                for draw in squares:
                    draws[arrival.place].add(draw)
    for place, seen in draws.items():
        if seen.count:
            sums.add_draws(place, seen)
    return directions


def _squares(arrival: Arrival, samples: int) -> Tensor:
    """Return Σ over samples of gradient² for each direction: (directions, *parameter shape), float64."""
    directions = len(arrival.deltas[0])
    total = arrival.parameter.new_zeros(directions, *arrival.parameter.shape, dtype=torch.float64)
    for chosen in sample_slices(arrival.parameter.numel() * directions, samples):
        parts = summed_gradient(arrival.uses, arrival.parameter, arrival.deltas, samples, chosen)
        total += parts.square().sum(1)
    return total


def _add_loose(sums: _Sums, run: Sweep, probes: int, seed: int, index: int) -> None:
    draws = [_Draws(run.objective.unique[place]) for place in run.loose]
    for direction in run.signs(probes, seed, index):
        for seen, part in zip(draws, run.whole_gradients(run.loose, direction), strict=True):
            seen.add(torch.zeros_like(seen.mean) if part is None else part.square())
    for place, seen in zip(run.loose, draws, strict=True):
        sums.add_draws(place, seen)


def _probed(objective: Objective, part: Part, probes: int, seed: int) -> _Sums:
    """Average v∘Mv, with signs of its own for each piece of the data."""
    sums = _Sums.zeros(objective, probes)
    with objective.studied(), task("diagonal probes", len(objective.batches)) as advance:
        for index, batch in enumerate(objective.batches):
            product, count = batch_product(objective, batch, part)
            draws = [_Draws(parameter) for parameter in objective.unique]
            for probe in range(probes):
                vector = signs(objective.unique, seed, probe, index)
                for seen, sign, image in zip(draws, vector, product(vector), strict=True):
                    seen.add(sign * image)
            for place, seen in enumerate(draws):
                sums.add_draws(place, seen)
            sums.count += count
            advance()
    sums.cost = GRAPH_COST + PRODUCT_COST * probes
    return sums
