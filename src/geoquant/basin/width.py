"""How wide is the low-loss basin around the float weights, measured in grid steps?

Along each direction: the largest radius at which the loss stays within τ of the float loss, with an interval from the
samples' spread. The second-order radius √(2τ/c), c the curvature along the direction, stands beside it: where the real
one is far smaller, there is a wall that the Hessian at the float weights does not see. For the same reason river and
valley are told apart by the curvature of a stretch as long as the way to the rounded point, not by that at a point.
Directions are a sample: a basin can be narrower along one that was not tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from geoquant.basin.directions import Cell, Direction, curvatures, eigenvectors
from geoquant.basin.radius import Radius, find_radius
from geoquant.basin.rise import LossRise, SampleLoss
from geoquant.data import collect
from geoquant.evaluation import Mean
from geoquant.geometry import Objective, make_objective
from geoquant.models import Forward, predict
from geoquant.plan import Plan
from geoquant.progress import task

WALL = 0.5
"""The basin ends at a wall where its radius is below this share of the second-order one."""


@dataclass(frozen=True)
class Width:
    """The basin's extent along one direction.

    Attributes:
        direction: its name.
        kind: "displacement", "random", "eigenvector" or "trajectory".
        layer: the only layer that moves; empty when all do.
        radius: in multiples of the direction; 1 is its end, for the displacement the rounded point.
        norm: length of the direction, in weight units.
        steps: the same in grid steps, root mean square over the weights.
        rise: of the loss at radius 1, nats per prediction.
        curvature: along the direction, nats per squared weight unit; None where it was not measured.
        second_order: √(2τ/curvature) as a radius; None likewise, infinite where the loss does not curve up.
        stretch: curvature of the stretch from one displacement's length behind the float weights to one before them,
            (f(+) − 2f(0) + f(−)) / length², walls included and slopes not; None likewise.
        landform: "valley" where the stretch curves so much that it uses up τ; "river" where it does not, although that
            of another direction does; "basin" where that of none does: over so short a way all is flat.
    """

    direction: str
    kind: str
    layer: str
    radius: Radius
    norm: float
    steps: float
    rise: Mean
    curvature: float | None = None
    second_order: float | None = None
    stretch: float | None = None
    landform: str | None = None

    @property
    def leaves(self) -> bool:
        """Whether the end of the direction lies outside the basin."""
        return self.radius.value < 1

    @property
    def in_weights(self) -> Radius:
        """The radius in weight units (Euclidean)."""
        return self.radius.times(self.norm)

    @property
    def in_steps(self) -> Radius:
        """The radius in grid steps."""
        return self.radius.times(self.steps)

    @property
    def wall(self) -> bool:
        """Whether the basin was seen to end, far before curvature alone would end it."""
        if self.second_order is None or self.radius.open:
            return False
        return self.radius.value < WALL * self.second_order

    def __str__(self) -> str:
        place = f" of {self.layer}" if self.layer else ""
        notes = [] if self.landform is None else [self.landform]
        notes += ["wall"] if self.wall else []
        more = f" ({', '.join(notes)})" if notes else ""
        return f"{self.direction}{place}: radius {self.radius}, {self.in_steps} grid steps{more}"


@dataclass(frozen=True)
class BasinWidth:
    """The basin around the float weights along all measured directions.

    Attributes:
        tolerance: τ.
        loss: its name.
        float_loss: of the float model on the same samples.
        samples: looked at along joint directions.
        layer_samples: looked at along those of single layers.
        largest_curvature: in magnitude, of the Hessian over all layers; None where it was not measured.
        joint: directions in which all layers move.
        layers: the displacement of each layer alone.
    """

    tolerance: float
    loss: str
    float_loss: Mean
    samples: int
    layer_samples: int
    largest_curvature: float | None
    joint: tuple[Width, ...]
    layers: tuple[Width, ...]

    @property
    def displacement(self) -> Width:
        """The way to the rounded point, all layers together."""
        return next(width for width in self.joint if width.kind == "displacement")

    @property
    def random_steps(self) -> float:
        """Mean radius in grid steps along random directions of the cell; nan when there was none."""
        found = [width.in_steps.value for width in self.joint if width.kind == "random"]
        return sum(found) / len(found) if found else math.nan

    @property
    def leaving(self) -> tuple[str, ...]:
        """Layers that leave the basin when they alone are rounded."""
        return tuple(width.layer for width in self.layers if width.leaves)


@dataclass(frozen=True)
class WidthSettings:
    """How much is spent on measuring widths.

    Attributes:
        randoms: random directions of the grid cell.
        eigenvectors: sharpest directions of the Hessian, each both ways; 0 skips all curvature.
        layers: whether each layer is moved alone too.
        layer_samples: for those; the first ones.
        curvature_samples: for Hessian-vector products; the first ones.
        lanczos_steps: Hessian-vector products at most.
        predictions: wherever samples hold many each, as windows of text do, no more samples are looked at than hold so
            many (but 16); samples of one prediction are not affected.
        limit: how far to look, in multiples of the direction.
        layer_limit: the same for single layers.
        relative: width of the final bracket, as a share of the radius.
        layer_relative: the same for single layers, of which there are many; whether they leave does not depend on it.
        confidence: of the intervals.
    """

    randoms: int = 2
    eigenvectors: int = 1
    layers: bool = True
    layer_samples: int = 128
    curvature_samples: int = 64
    lanczos_steps: int = 10
    predictions: int = 2048
    limit: float = 8.0
    layer_limit: float = 2.0
    relative: float = 0.15
    layer_relative: float = 0.3
    confidence: float = 0.95


def basin_width(
    model: nn.Module,
    plan: Plan,
    batches: Iterable[Any],
    *,
    tolerance: float = 0.05,
    loss: str | SampleLoss = "auto",
    checkpoints: Sequence[Mapping[str, Tensor]] = (),
    settings: WidthSettings | None = None,
    forward: Forward | None = None,
    seed: int = 0,
) -> BasinWidth:
    """Measure how far the weights can move before the loss rises by `tolerance`.

    Args:
        model: the float model; it stays as it is.
        plan: gives the grid: the displacement, the cell, the length of a step.
        batches: what the loss is measured on.
        tolerance: τ, in the loss's unit (nats per prediction).
        loss: see `LossRise`.
        checkpoints: state dicts of the training that led to the model; their directions are measured too.
        settings: what to spend.
        forward: how to call the model.
        seed: of the random directions and of the eigenvectors' start.

    Raises:
        PlanError: the plan moves no weight, belongs to another model, or a checkpoint does.
        DataError: there is no batch, or targets are missing.
    """
    spend = settings or WidthSettings()
    data = collect(batches)
    cell, rise = Cell.of(model, plan), LossRise(model, data, loss, forward)
    layered = collect(data, rise.enough(spend.layer_samples, spend.predictions))
    few = LossRise(model, layered, loss, forward) if spend.layers else None
    survey = _Survey(cell, rise, tolerance, spend)
    ways = [cell.displacement(), *(cell.random(seed, draw) for draw in range(spend.randoms))]
    ways += cell.trajectory(checkpoints)
    known: dict[str, float] = {}
    stretched: dict[str, float] = {}
    largest = None
    if spend.eigenvectors:
        curved = collect(data, rise.enough(spend.curvature_samples, spend.predictions))
        objective = _objective(model, curved, cell, rise, forward)
        sharp, largest = eigenvectors(objective, cell, spend.eigenvectors, spend.lanczos_steps, seed)
        known = dict(zip((way.name for way in ways), curvatures(objective, ways), strict=True))
        known |= {way.name: value for way, value in sharp}
        ways += [way for way, _ in sharp]
        stretched = stretches(cell, rise, ways)
    alone = [cell.displacement().only(site) for site in cell.sites] if few is not None else []
    with task("measuring the basin", len(ways) + len(alone)) as advance:
        found = [survey.width(way, rise, advance, known.get(way.name), stretched.get(way.name)) for way in ways]
        layers = tuple(survey.width(way, few, advance) for way in alone) if few is not None else ()
    length = cell.displacement().norm
    joint = with_landforms(found, 2 * tolerance / length**2 if length else math.inf)
    samples = 0 if few is None else few.samples
    return BasinWidth(tolerance, rise.name, rise.float_loss, rise.samples, samples, largest, joint, layers)


def stretches(cell: Cell, rise: LossRise, ways: Sequence[Direction]) -> dict[str, float]:
    """Return the curvature of each direction's stretch (see `Width.stretch`); a way and the opposite one share it."""
    length = cell.displacement().norm
    found: dict[str, float] = {}
    for way in ways if length else ():
        forward = way.name.removeprefix("−")
        if forward not in found:
            ahead = way.scaled(length)
            found[forward] = sum(rise.at(ahead.at(cell.origin, side)).value for side in (1.0, -1.0)) / length**2
        found[way.name] = found[forward]
    return found


def with_landforms(widths: Sequence[Width], critical: float) -> tuple[Width, ...]:
    """Return the widths with their landforms.

    Args:
        widths: along joint directions.
        critical: the curvature whose parabola reaches τ one displacement's length from the float weights.
    """
    known = [width.stretch for width in widths if width.stretch is not None]
    flat = "river" if any(stretch > critical for stretch in known) else "basin"
    return tuple(
        width if width.stretch is None else replace(width, landform="valley" if width.stretch > critical else flat)
        for width in widths
    )


def _objective(
    model: nn.Module, batches: Sequence[Any], cell: Cell, rise: LossRise, forward: Forward | None
) -> Objective:
    """Return the same loss for second derivatives."""
    chosen = [site.parameter for site in cell.sites]
    if rise.own is None:
        return make_objective(model, batches, chosen, loss=rise.name, forward=forward)
    own = rise.own
    return make_objective(
        model, batches, chosen, loss=lambda net, batch: own(predict(net, batch, forward), batch).mean(), forward=forward
    )


@dataclass(frozen=True, eq=False)
class _Survey:
    """Measures one direction after the other from the same origin."""

    cell: Cell
    rise: LossRise
    tolerance: float
    spend: WidthSettings

    def width(
        self,
        way: Direction,
        rise: LossRise,
        advance: Callable[[], None],
        curvature: float | None = None,
        stretch: float | None = None,
    ) -> Width:
        """Find the radius of one direction."""
        end: dict[float, Mean] = {}

        def at(radius: float) -> Mean:
            end[radius] = rise.at(way.at(self.cell.origin, radius))
            return end[radius]

        radius = find_radius(
            at,
            self.tolerance,
            limit=self.spend.layer_limit if way.layer else self.spend.limit,
            confidence=self.spend.confidence,
            relative=self.spend.layer_relative if way.layer else self.spend.relative,
        )
        advance()
        norm = way.norm
        second = None
        if curvature is not None:
            second = math.sqrt(2 * self.tolerance / curvature) / norm if curvature > 0 and norm > 0 else math.inf
        steps, rise_there = self.cell.steps(way), end[1.0]
        return Width(way.name, way.kind, way.layer, radius, norm, steps, rise_there, curvature, second, stretch)
