"""Precision that swings: cyclic precision training (CPT; Fu et al., arXiv:2101.09868), blind to what training does.

Forward bits go up along half a cosine in each of n equal cycles, b = ⌊b_min + ½(b_max − b_min)(1 − cos(π(t mod T)/T))⌉,
while gradients keep the upper width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from geoquant.training.precision import FINE, LayerPrecision, next_level
from geoquant.training.schedules.protocol import DECIDE, NOTHING, SCHEDULES, Moment, Proposal


@SCHEDULES.add("cpt")
@dataclass(frozen=True)
class Cyclic:
    """Cyclic precision between two widths.

    Attributes:
        low: lowest forward bits.
        high: highest forward bits, and the backward bits.
        cycles: in the whole run.
        levels: rounded up to these.

    >>> from geoquant.training.schedules.protocol import LayerFacts
    >>> at = lambda step: Cyclic().propose(Moment(step, 0.1, None, 320, {}, {"a": LayerFacts(1)}))["a"].precision
    >>> [at(step).weights for step in (0, 5, 9, 10)], at(0).gradients
    (['int3', 'int6', 'int8', 'int3'], 'int8')
    """

    low: int = 3
    high: int = 8
    cycles: int = 32
    levels: tuple[str, ...] = FINE
    patience: int = 1
    needs: frozenset[str] = NOTHING
    needs_horizon: frozenset[str] = frozenset({"total_steps"})

    def agenda(self, step: int, steps_per_epoch: int | None) -> frozenset[str]:
        """Decide at every step; nothing is measured."""
        return frozenset({DECIDE})

    def propose(self, moment: Moment) -> dict[str, Proposal]:
        """Propose the width of this place in the cycle, the same for all layers."""
        period = (moment.total_steps or self.cycles) / self.cycles
        phase = (moment.step % period) / period
        bits = round(self.low + 0.5 * (self.high - self.low) * (1 - math.cos(math.pi * phase)))
        name = next_level(self.levels, bits)
        precision = LayerPrecision.of(name, next_level(self.levels, self.high))
        return dict.fromkeys(moment.layers, Proposal(precision, f"cycle at {phase:.2f}"))
