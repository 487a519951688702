"""Do the assumptions of the finite-entry bound hold on a real net, along a path that was really walked?

A plain straight-through walk w ← w − η∇f(Q(w)) from the float weights, scales fixed. Its points give estimates of the
bound's constants: ρ, the largest offset of rounding; s and G, the least inward and the largest gradient across the
river at deployed points outside the basin; r, the basin's radius along the way to the first of them. The river is
taken to be straight, along one direction. These are estimates of assumptions on a few visited points, not a proof:
other points may break them. Where the estimates break them the bound is silent; training may succeed all the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from geoquant.basin.directions import Cell, Direction
from geoquant.basin.landscape import entry_bound
from geoquant.basin.radius import find_radius
from geoquant.basin.rise import LossRise, Point, SampleLoss
from geoquant.errors import GeoquantError
from geoquant.models import Forward
from geoquant.plan import Plan
from geoquant.progress import task


@dataclass(frozen=True)
class LandscapeEstimate:
    """Estimates of the constants of `entry_bound` along one walk, in weight units and nats.

    Attributes:
        r: radius of the basin on the way to the first deployed point outside.
        s: least ⟨n, ∇⊥f⟩/‖n‖ at visited points outside the basin; nan when none was.
        G: largest ‖∇⊥f‖ there; nan likewise.
        rho: largest ‖n(Q(w)) − n(w)‖ on the walk.
        distance: ‖n‖ of the float weights.
        step: learning rate of the walk.
        rises: rise of the loss at each deployed point.
        tolerance: what counts as inside.
    """

    r: float
    s: float
    G: float
    rho: float
    distance: float
    step: float
    rises: tuple[float, ...]
    tolerance: float

    @property
    def entry(self) -> int | None:
        """The step at which the walk was first seen inside; None when it was not."""
        return next((k for k, rise in enumerate(self.rises) if rise <= self.tolerance), None)

    @property
    def bound(self) -> int | None:
        """The bound on that step if the constants are right; None where the conditions fail (see `refusal`)."""
        return None if self.refusal else entry_bound(*self._constants)

    @property
    def refusal(self) -> str:
        """Say which condition of the bound fails; empty when all hold."""
        if math.isnan(self.s):
            return "no deployed point of the walk lay outside the basin"
        if self.s < 0:
            return f"s = {self.s:.4g}: at some visited point outside, the gradient pulls away from the river"
        try:
            entry_bound(*self._constants)
        except GeoquantError as error:
            return str(error)
        return ""

    @property
    def _constants(self) -> tuple[float, float, float, float, float, float]:
        return self.r, self.s, self.G, self.rho, self.step, self.distance

    def __str__(self) -> str:
        seen = "never seen inside" if self.entry is None else f"first inside at step {self.entry}"
        said = (
            f"no bound ({self.refusal})" if self.refusal else f"bound {self.bound} if these constants hold everywhere"
        )
        return (
            f"r = {self.r:.4g}, s = {self.s:.4g}, G = {self.G:.4g}, rho = {self.rho:.4g} on {len(self.rises)} visited "
            f"points; {seen}; {said}"
        )


def measure_landscape(
    model: nn.Module,
    plan: Plan,
    batches: Iterable[Any],
    *,
    tolerance: float = 0.05,
    rate: float = 0.01,
    steps: int = 20,
    centre: Point | None = None,
    river: Mapping[str, Tensor] | None = None,
    loss: str | SampleLoss = "auto",
    forward: Forward | None = None,
) -> LandscapeEstimate:
    """Estimate r, s, G and ρ along a straight-through walk from the float weights.

    Args:
        model: the float model; it stays as it is.
        plan: gives the grid; its scales are fitted once.
        batches: what the loss is taken over, all of them at each step.
        tolerance: rise of the loss up to which a point is inside, in nats.
        rate: learning rate η.
        steps: of the walk.
        centre: weights by parameter through which the river passes, such as a low-loss codeword; the float weights when
            None.
        river: direction of the river by parameter, such as the difference of two checkpoints; that of steepest descent
            at the float weights when None.
        loss: see `LossRise`.
        forward: how to call the model.

    Raises:
        PlanError: the plan moves no weight.
        GeoquantError: no steps, or a rate that is not positive.
    """
    if steps < 1 or not (math.isfinite(rate) and rate > 0):
        raise GeoquantError(f"{steps} steps at rate {rate} lead nowhere; use at least 1 step and a positive rate")
    cell, rise = Cell.of(model, plan), LossRise(model, batches, loss, forward)
    start = {name: weight.clone() for name, weight in cell.origin.items()}
    middle = dict(start) if centre is None else {name: centre[name].to(start[name]) for name in start}
    along = _unit(rise.gradient(start) if river is None else {name: river[name].to(start[name]) for name in start})
    walk = _Walk(cell, rise, along, middle)
    with task("walking straight through", steps) as advance:
        for _ in range(steps):
            start = walk.step(start, rate, tolerance)
            advance()
    way = walk.first_outside or _across(walk.deployed, along, middle)
    radius = find_radius(lambda x: rise.at(way.at(middle, x)), tolerance, limit=8.0) if way.norm else None
    return LandscapeEstimate(
        math.inf if radius is None else radius.value * way.norm,
        min(walk.inward, default=math.nan),
        max(walk.sizes, default=math.nan),
        max(walk.offsets),
        _across(cell.origin, along, middle).norm,
        rate,
        tuple(walk.rises),
        tolerance,
    )


class _Walk:
    """Takes steps and keeps what the constants need."""

    def __init__(self, cell: Cell, rise: LossRise, along: dict[str, Tensor], centre: dict[str, Tensor]) -> None:
        self._cell, self._rise, self._along, self._centre = cell, rise, along, centre
        self.rises: list[float] = []
        self.offsets: list[float] = []
        self.inward: list[float] = []
        self.sizes: list[float] = []
        self.first_outside: Direction | None = None
        self.deployed: dict[str, Tensor] = {}

    def step(self, latent: dict[str, Tensor], rate: float, tolerance: float) -> dict[str, Tensor]:
        """Look at the deployed point of `latent`; return the next latent weights."""
        self.deployed = self._cell.round(latent)
        slope = self._rise.gradient(self.deployed)
        here = self._rise.at(self.deployed).value
        out = _across(self.deployed, self._along, self._centre)
        offset = {name: self.deployed[name] - latent[name] for name in latent}
        self.rises.append(here)
        self.offsets.append(Direction("", "", _without(offset, self._along)).norm)
        if here > tolerance and out.norm:
            pull = _without(slope, self._along)
            self.inward.append(_inner(out.moves, pull) / out.norm)
            self.sizes.append(Direction("", "", pull).norm)
            self.first_outside = self.first_outside or out
        return {name: weight - rate * slope[name] for name, weight in latent.items()}


def _inner(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> float:
    return sum(float((one[name].double() * two[name].double()).sum()) for name in one)


def _unit(vector: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the vector at length 1; zeros where it has none, so that nothing is projected away."""
    norm = math.sqrt(_inner(vector, vector))
    return {name: part / norm if norm else part for name, part in vector.items()}


def _without(vector: Mapping[str, Tensor], along: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the part of `vector` across the river."""
    share = _inner(vector, along)
    return {name: part - share * along[name] for name, part in vector.items()}


def _across(point: Mapping[str, Tensor], along: Mapping[str, Tensor], centre: Mapping[str, Tensor]) -> Direction:
    """Return n(point), the way across the river from its centre."""
    return Direction("normal", "normal", _without({name: point[name] - centre[name] for name in centre}, along))
