"""In how few bits does every step still go down, layers taken together?

The descent condition: the step goes down while the gradient is longer than its error, and the error that forward
rounding of weights makes in layer i's gradient is at most Σ_j ‖H_ij‖‖δ_j‖, over *all* layers j, with ‖δ_j‖ ≤
√d_j·R_j/2^{b+1}. The widths that satisfy it for all layers come from `geoquant.bounds.sufficient_layer_bits`. Where
weights are kept on a grid with nearest rounding, they are kept so finely that a typical update leaves the dead zone,
η‖g_i‖/√d_i > Δ_i/2.

Where the answer stops: the condition covers the weights' rounding, not that of activations and gradients, asks for η
≤ 1/L, and the norms of Hessian blocks are measured along one direction each, so they are estimates from below.
Source: the sound form of docs/sources.md, "End-to-End QAT via Numerical Geometry"; see
`geoquant.bounds.descent_condition`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from geoquant.bounds import sufficient_layer_bits
from geoquant.training.numerics import FLOAT
from geoquant.training.precision import FINE, LayerPrecision, next_level
from geoquant.training.schedules.protocol import (
    CURVATURE,
    DECIDE,
    NOTHING,
    SCHEDULES,
    LayerFacts,
    Moment,
    Proposal,
)


@SCHEDULES.add("sound")
@dataclass(frozen=True)
class Sound:
    """The descent condition with coupled layers, and the dead zone.

    Attributes:
        every: steps between decisions; each measures one column of the coupling, the first all of them.
        least: bits that no layer goes below: the condition says nothing of activations and gradients.
        keep: choose the width of stored weights by the dead zone, instead of keeping float32.
    """

    every: int = 50
    least: int = 4
    keep: bool = False
    levels: tuple[str, ...] = FINE
    patience: int = 2
    needs: frozenset[str] = frozenset({CURVATURE})
    needs_horizon: frozenset[str] = NOTHING

    def agenda(self, step: int, steps_per_epoch: int | None) -> frozenset[str]:
        """Measure and decide after the first step, and every so many."""
        return frozenset({CURVATURE, DECIDE}) if step == 1 or step % self.every == 0 else NOTHING

    def propose(self, moment: Moment) -> dict[str, Proposal]:
        """Propose the least levels with which the condition holds."""
        facts = moment.layers
        if moment.coupling is None or any(one.gradient_norm is None for one in facts.values()):
            return dict.fromkeys(facts, Proposal(LayerPrecision.of(next_level(self.levels, 8)), "nothing measured yet"))
        ordered = list(facts.values())
        bits = sufficient_layer_bits(
            moment.coupling,
            [one.gradient_norm or 0.0 for one in ordered],
            [one.weights for one in ordered],
            [one.span or 0.0 for one in ordered],
        )
        proposals = {}
        for (name, one), wanted in zip(facts.items(), bits, strict=True):
            chosen = next_level(self.levels, max(wanted, self.least))
            stored = next_level(self.levels, stored_bits(one, moment.rate)) if self.keep else FLOAT
            precision = LayerPrecision(chosen, chosen, chosen, stored=stored)
            proposals[name] = Proposal(
                precision, f"descent needs {wanted:.1f} forward weight bits, ‖g‖ {one.gradient_norm:.3g}"
            )
        return proposals


def stored_bits(facts: LayerFacts, rate: float) -> float:
    """Return the bits above which a typical update η‖g‖/√d is longer than half a gap of the stored weights.

    >>> stored_bits(LayerFacts(4, gradient_norm=2.0, span=8.0), 0.25)  # gaps under 2·0.25·1
    4.0
    """
    if not facts.gradient_norm or not facts.span or rate == 0:
        return math.inf
    return math.log2(facts.span / (2 * rate * facts.gradient_norm / math.sqrt(facts.weights)))
