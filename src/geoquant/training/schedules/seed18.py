"""The schedule of docs/sources.md, "End-to-End QAT via Numerical Geometry", as it is written there; and its parts.

After a warm-up epoch in 32 bits, at every epoch, for every layer p_i = ⌈log₂(κ_i‖θ_i‖/‖g_i‖)⌉ + c, at least
p_min = ⌈log₂(L_T/‖g‖)⌉ and at least 4; forward and backward use p_i, the optimizer max p_i. The source's input ε_target
does not occur in its algorithm; given here, it sets the margin, c = log₂(1/ε_target): then 2^−c, the gradient error
that the rule allows relative to the gradient, is the target.

Where the answer stops: log₂(L_T/‖g‖) is not dimensionless, the rule looks at each layer as if the others were exact,
and neither promises descent; `geoquant.training.schedules.sound` has the form that does. What a curvature is measured
as is in `geoquant.training.measuring`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from geoquant.bounds import seed18_layer_bits
from geoquant.training.numerics import FLOAT, level
from geoquant.training.precision import COARSE, LayerPrecision, next_level
from geoquant.training.schedules.protocol import (
    CURVATURE,
    DECIDE,
    NOTHING,
    SCHEDULES,
    WHOLE,
    LayerFacts,
    Moment,
    Proposal,
)


@SCHEDULES.add("seed18")
@dataclass(frozen=True)
class Seed18:
    """NumGeom-QAT as written.

    Attributes:
        warm_up: epochs in 32 bits.
        margin: c, in bits.
        target: ε_target; replaces the margin by log₂(1/ε_target).
        curvature_every: epochs between measurements of the curvature.
        least: bits that no layer goes below.
    """

    warm_up: int = 1
    margin: float = 4.0
    target: float | None = None
    curvature_every: int = 10
    least: int = 4
    levels: tuple[str, ...] = COARSE
    patience: int = 1
    needs: frozenset[str] = frozenset({CURVATURE})
    needs_horizon: frozenset[str] = frozenset({"steps_per_epoch"})

    def agenda(self, step: int, steps_per_epoch: int | None) -> frozenset[str]:
        """Decide at each epoch's end after the warm-up, with a new curvature at every k-th."""
        epoch, inside = divmod(step, steps_per_epoch or 1)
        if inside or epoch < self.warm_up:
            return NOTHING
        due = (epoch - self.warm_up) % self.curvature_every == 0
        return frozenset({DECIDE, CURVATURE, WHOLE} if due else {DECIDE})

    def propose(self, moment: Moment) -> dict[str, Proposal]:
        """Apply the rule."""
        facts = moment.layers
        if any(one.curvature is None or one.gradient_norm is None for one in facts.values()):
            return dict.fromkeys(facts, Proposal(LayerPrecision(), "warm-up in 32 bits"))
        margin = self.margin if self.target is None else math.log2(1 / self.target)
        total = math.hypot(*(one.gradient_norm or 0.0 for one in facts.values()))
        step_lipschitz = 1 + moment.rate * max(one.curvature or 0 for one in facts.values())
        floor = max(math.ceil(math.log2(step_lipschitz / total)) if total else 32, self.least)
        bits = {name: max(layer_bits(one, margin), floor) for name, one in facts.items()}
        names = {name: next_level(self.levels, each) for name, each in bits.items()}
        widest = max(names.values(), key=lambda name: level(name).bits)
        return {
            name: Proposal(
                LayerPrecision.of(names[name], names[name], widest),
                f"p_min {floor}, κ {one.curvature:.3g}, ‖θ‖ {one.weight_norm:.3g}, ‖g‖ {one.gradient_norm:.3g} "
                f"→ {bits[name]} bits",
            )
            for name, one in facts.items()
        }


def layer_bits(facts: LayerFacts, margin: float, gradient_norm: float | None = None) -> int:
    """Return ⌈log₂(κ_i‖θ_i‖/‖g_i‖)⌉ + c, at least 0; 32 where weights have grown past float32.

    >>> layer_bits(LayerFacts(4, gradient_norm=2.0, weight_norm=8.0, curvature=4.0), 3.0)
    7
    """
    gradient = gradient_norm or facts.gradient_norm or math.inf
    if not facts.curvature or not facts.weight_norm:
        return 0
    if not math.isfinite(facts.weight_norm):
        return level(FLOAT).bits
    return max(math.ceil(seed18_layer_bits(facts.curvature, facts.weight_norm, gradient, 0.0)) + round(margin), 0)


@dataclass(frozen=True)
class _Part:
    """One part of the seed's rule, every `every` steps, without its warm-up and with an optimizer in 32 bits."""

    every: int = 50
    margin: float = 4.0
    levels: tuple[str, ...] = COARSE
    patience: int = 2
    needs: frozenset[str] = frozenset({CURVATURE})
    needs_horizon: frozenset[str] = NOTHING

    def agenda(self, step: int, steps_per_epoch: int | None) -> frozenset[str]:
        """Measure and decide after the first step, and every so many."""
        return self.needs | {DECIDE} if step == 1 or step % self.every == 0 else NOTHING

    def propose(self, moment: Moment) -> dict[str, Proposal]:
        """Propose the bits of `_wish`, eight before anything was measured."""
        proposals = {}
        for name, facts in moment.layers.items():
            before = moment.initial.get(name)
            if before is None or not before.gradient_norm or not facts.gradient_norm:
                proposals[name] = Proposal(LayerPrecision.of(next_level(self.levels, 8)), "nothing measured yet")
                continue
            bits, reason = self._wish(facts, before)
            chosen = next_level(self.levels, bits)
            proposals[name] = Proposal(LayerPrecision.of(chosen, chosen, FLOAT), reason)
        return proposals

    def _wish(self, facts: LayerFacts, before: LayerFacts) -> tuple[float, str]:
        bits = layer_bits(facts, self.margin)
        return bits, f"κ {facts.curvature or 0:.3g}, ‖g‖ {facts.gradient_norm:.3g} → {bits} bits"


@SCHEDULES.add("combined")
@dataclass(frozen=True)
class Combined(_Part):
    """Curvature and gradient: the seed's layer rule all through training."""


@SCHEDULES.add("curvature")
@dataclass(frozen=True)
class CurvatureOnly(_Part):
    """Curvature only: the seed's layer rule with the gradient norm of the first step."""

    def _wish(self, facts: LayerFacts, before: LayerFacts) -> tuple[float, str]:
        bits = layer_bits(facts, self.margin, before.gradient_norm)
        return bits, f"κ {facts.curvature or 0:.3g} at the first step's ‖g‖ {before.gradient_norm:.3g} → {bits} bits"


@SCHEDULES.add("gradient")
@dataclass(frozen=True)
class GradientOnly(_Part):
    """Gradient only, the heuristic: a bit more each time that the layer's gradient norm has halved.

    Attributes:
        start: bits at the first gradient norm.
    """

    start: float = 4.0
    needs: frozenset[str] = NOTHING

    def _wish(self, facts: LayerFacts, before: LayerFacts) -> tuple[float, str]:
        assert before.gradient_norm is not None
        assert facts.gradient_norm is not None
        bits = self.start + max(math.log2(before.gradient_norm / facts.gradient_norm), 0.0)
        return bits, f"‖g‖ {facts.gradient_norm:.3g} of {before.gradient_norm:.3g} at first → {bits:.1f} bits"
