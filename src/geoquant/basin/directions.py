"""Which ways lead out of the basin, and how long is a grid step there?

Directions are displacements of weights, by parameter: to the rounded point, to random points of the grid cell, along
the Hessian's sharpest eigenvectors, and towards checkpoints of the training that made the float weights. Their length
is in weight units, and in grid steps: the root mean square, over the weights that the plan quantizes, of each weight's
displacement over the gap between the two levels around it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from geoquant.errors import PlanError
from geoquant.geometry import Objective
from geoquant.geometry.hvp import products
from geoquant.geometry.lanczos import extreme_eigenvalues
from geoquant.geometry.probes import uniform
from geoquant.geometry.spectrum import LossOperator, unflatten
from geoquant.grids import Grid, Scales
from geoquant.models import Site, get_weight
from geoquant.plan import Plan
from geoquant.rounding.learned import neighbours

KEPT = 16
"""Grids of this many bits or more leave weights where they are."""


@dataclass(frozen=True, eq=False)
class Direction:
    """A displacement of the weights; radius 1 is its end.

    Attributes:
        kind: "displacement", "random", "eigenvector" or "trajectory".
        name: unique among the directions of a layer.
        moves: displacement by parameter, in the weight's shape.
        layer: the only layer that moves; empty when all do.
    """

    kind: str
    name: str
    moves: Mapping[str, Tensor]
    layer: str = ""

    @property
    def norm(self) -> float:
        """Euclidean length, in weight units."""
        return math.sqrt(sum(float(move.double().square().sum()) for move in self.moves.values()))

    def scaled(self, norm: float) -> Direction:
        """Return the same direction with another length."""
        factor = norm / self.norm if self.norm else 0.0
        return replace(self, moves={name: factor * move for name, move in self.moves.items()})

    def backward(self) -> Direction:
        """Return the opposite direction."""
        return replace(self, name=f"−{self.name}", moves={name: -move for name, move in self.moves.items()})

    def only(self, site: Site) -> Direction:
        """Return the part of one layer."""
        return replace(self, moves={site.parameter: self.moves[site.parameter]}, layer=site.name)

    def at(self, origin: Mapping[str, Tensor], radius: float) -> dict[str, Tensor]:
        """Return the weights `radius` times this direction away from `origin`."""
        return {name: origin[name] + radius * move for name, move in self.moves.items()}


@dataclass(frozen=True, eq=False)
class Cell:
    """The grid cell around the float weights of a model under a plan.

    Attributes:
        sites: those that the plan moves: on grids of fewer than 16 bits.
        origin: float weights by parameter.
        rounded: each at its nearest codeword.
        gaps: distance of the two levels around each weight, in weight units.
        points: the grid and the scales of each.
    """

    sites: tuple[Site, ...]
    origin: dict[str, Tensor]
    rounded: dict[str, Tensor]
    gaps: dict[str, Tensor]
    points: dict[str, tuple[Grid, Scales]]

    @staticmethod
    def of(model: nn.Module, plan: Plan) -> Cell:
        """Fit the plan's scales to the float weights.

        Raises:
            PlanError: the plan moves no weight.

        >>> from geoquant.plan import uniform_plan
        >>> layer = nn.Sequential(nn.Linear(2, 1, bias=False))
        >>> with torch.no_grad(): _ = layer[0].weight.copy_(torch.tensor([[3.0, 0.8]]))
        >>> cell = Cell.of(layer, uniform_plan(layer, "int3:narrow:maxabs:fp32"))
        >>> cell.rounded["0.weight"], cell.gaps["0.weight"]
        (tensor([[3., 1.]]), tensor([[1., 1.]]))
        """
        sites, origin, rounded, gaps, points = [], {}, {}, {}, {}
        for site, grid in zip(plan.inventory.sites, plan.grids, strict=True):
            if grid.bits >= KEPT:
                continue
            weight = get_weight(model, site).clone()
            quantized = grid.quantize(site.matrix(weight).float())
            sites.append(site)
            origin[site.parameter] = weight
            points[site.parameter] = grid, quantized.scales
            rounded[site.parameter] = site.restore(quantized.dequantize()).to(weight)
            gaps[site.parameter] = site.restore(level_gaps(grid, site.matrix(weight), quantized.scales)).to(weight)
        if not sites:
            raise PlanError(f"the plan leaves every layer in {KEPT} bits or more; there is nothing to diagnose")
        return Cell(tuple(sites), origin, rounded, gaps, points)

    def round(self, point: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return each weight of `point` at its nearest codeword, with the scales of the float weights."""
        found = {}
        for site in self.sites:
            (grid, scales), weight = self.points[site.parameter], point[site.parameter]
            matrix = site.matrix(weight).float()
            found[site.parameter] = site.restore(grid.decode(grid.encode(matrix, scales), scales)).to(weight)
        return found

    def towards(self, point: Mapping[str, Tensor], name: str = "codeword") -> Direction:
        """Return the way from the float weights to `point`, weights by parameter."""
        return Direction(name, name, {key: point[key].to(weight) - weight for key, weight in self.origin.items()})

    def displacement(self) -> Direction:
        """Return the way from the float weights to the rounded ones."""
        return self.towards(self.rounded, "displacement")

    def random(self, seed: int, draw: int) -> Direction:
        """Return a random point of a box of one grid step's size around the float weights."""
        draws = uniform(list(self.origin.values()), seed, draw)
        moves = {name: self.gaps[name] * u for name, u in zip(self.origin, draws, strict=True)}
        return Direction("random", f"random {draw + 1}", moves)

    def trajectory(self, checkpoints: Sequence[Mapping[str, Tensor]]) -> Iterator[Direction]:
        """Yield the way to each checkpoint (a state dict), and the opposite one.

        Raises:
            PlanError: a checkpoint lacks one of the weights, or has it in another shape.
        """
        for index, state in enumerate(checkpoints):
            for name, weight in self.origin.items():
                if name not in state or state[name].shape != weight.shape:
                    raise PlanError(f"checkpoint {index} has no weight '{name}' of shape {tuple(weight.shape)}")
            way = replace(self.towards(state, f"checkpoint {index + 1}"), kind="trajectory")
            yield from (way, way.backward())

    def steps(self, direction: Direction) -> float:
        """Return the length of `direction` in grid steps, root mean square over the weights that it moves."""
        total, count = 0.0, 0
        for name, move in direction.moves.items():
            gap = self.gaps[name].double()
            total += float((move.double() / gap.where(gap > 0, torch.inf)).square().sum())
            count += move.numel()
        return math.sqrt(total / count)


def level_gaps(grid: Grid, matrix: Tensor, scales: Scales) -> Tensor:
    """Return the distance between the two levels around each weight, (channels, fan_in), in weight units.

    >>> grid, matrix = Grid.parse("int3:maxabs:fp32"), torch.tensor([[-3.5, 0.5]])
    >>> level_gaps(grid, matrix, grid.fit(matrix))
    tensor([[1., 1.]])
    """
    low, high, _ = neighbours(grid, grid.normalize(matrix, scales))
    scale = grid.granularity.expand(scales.scale, matrix.shape[1]).abs()
    return (high - low) * scale


def eigenvectors(
    objective: Objective, cell: Cell, count: int, steps: int, seed: int
) -> tuple[list[tuple[Direction, float]], float]:
    """Return the sharpest directions of the mean loss, both ways, as long as the displacement, with their curvature.

    Args:
        objective: whose parameters are the cell's weights, in order.
        cell: gives the length.
        count: eigenvectors.
        steps: Hessian-vector products at most.
        seed: of the start.

    Returns:
        (direction, eigenvalue) pairs, and the largest eigenvalue in magnitude.
    """
    operator = LossOperator(objective, "hessian")
    found = extreme_eigenvalues(operator, operator.start(seed, 0), count=count, tolerance=1e-2, max_steps=steps)
    length = cell.displacement().norm
    ways: list[tuple[Direction, float]] = []
    for index, (value, vector) in enumerate(zip(found.values[0].tolist(), found.vectors[0], strict=True)):
        moves = dict(zip(objective.names, unflatten(vector, objective.unique), strict=True))
        way = Direction("eigenvector", f"eigenvector {index + 1}", moves).scaled(length)
        ways += [(way, value), (way.backward(), value)]
    return ways, float(found.values[0].abs().max())


def curvatures(objective: Objective, directions: Sequence[Direction]) -> list[float]:
    """Return dᵀHd/‖d‖² of each direction d over all of the objective's parameters, nats per squared weight unit."""
    vectors: list[list[Tensor]] = [[direction.moves[name] for name in objective.names] for direction in directions]
    found = products(objective, vectors) if vectors else []
    return [_quotient(image, vector) for image, vector in zip(found, vectors, strict=True)]


def _quotient(image: Sequence[Tensor], vector: Sequence[Tensor]) -> float:
    pairs: list[tuple[Any, Any]] = list(zip(image, vector, strict=True))
    square = sum(float(v.double().square().sum()) for _, v in pairs)
    return sum(float((h.double() * v.double()).sum()) for h, v in pairs) / square if square else 0.0
