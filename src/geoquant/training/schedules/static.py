"""The same precision at every step: float32, uniform widths, and the two readings of mixed precision.

The baselines that an adaptive schedule has to beat. *seed-AMP* is 16 bits forward and 32 backward and in the optimizer
(docs/sources.md, "End-to-End QAT via Numerical Geometry"); *real AMP* runs the backward products in 16 bits as well and
keeps weights and state in 32 (Micikevicius et al., arXiv:1710.03740).
"""

from __future__ import annotations

from dataclasses import dataclass

from geoquant.training.numerics import FLOAT, level
from geoquant.training.precision import LayerPrecision
from geoquant.training.schedules.protocol import NOTHING, SCHEDULES, Moment, Proposal


@dataclass(frozen=True)
class Static:
    """One precision for all layers and steps.

    Attributes:
        precision: of every layer.
        reason: what to say for it.

    >>> Static(LayerPrecision.of("int6"), "six bits").levels
    ('int6', 'int8', 'int16', 'fp32')
    """

    precision: LayerPrecision
    reason: str
    patience: int = 1
    needs: frozenset[str] = frozenset()
    needs_horizon: frozenset[str] = frozenset()

    @property
    def levels(self) -> tuple[str, ...]:
        """Its own level, and wider ones to step up to after a NaN."""
        own = min((self.precision.weights, self.precision.gradients), key=lambda name: level(name).bits)
        return (own, *(name for name in ("int8", "int16", FLOAT) if level(name).bits > level(own).bits))

    def agenda(self, step: int, steps_per_epoch: int | None) -> frozenset[str]:
        """Nothing is ever decided again."""
        return NOTHING

    def propose(self, moment: Moment) -> dict[str, Proposal]:
        """Propose the same for all."""
        return dict.fromkeys(moment.layers, Proposal(self.precision, self.reason))


@SCHEDULES.add("float32")
def float32() -> Static:
    """Plain training, bit for bit."""
    return Static(LayerPrecision(), "float32")


@SCHEDULES.add("uniform")
def uniform(forward: str = "int8", optimizer: str = FLOAT, stored: str = FLOAT) -> Static:
    """One level for forward and backward; ``int4/int6`` gives each its own.

    >>> uniform("int4/int6").precision.gradients
    'int6'
    """
    one, _, other = forward.partition("/")
    precision = LayerPrecision(one, one, other or one, FLOAT, optimizer, stored)
    return Static(precision, f"uniform {forward}")


@SCHEDULES.add("seed-amp")
def seed_amp(low: str = "fp16") -> Static:
    """16 bits forward, 32 backward and in the optimizer."""
    return Static(LayerPrecision.of(low, FLOAT), "16 bits forward")


@SCHEDULES.add("amp")
def amp(low: str = "bf16") -> Static:
    """16 bits forward and backward, 32 in the optimizer."""
    return Static(LayerPrecision.of(low, low), "16 bits forward and backward")
