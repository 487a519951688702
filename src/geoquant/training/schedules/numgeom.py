"""Which cheap precision makes noise that training does not notice?

A layer learns while its gradient is not drowned in noise. Rounding layer j to steps of size s_j adds s_j²·V_ji to the
squared error of layer i's gradient, with V_ji measured by rounding layer j alone on a small batch, which sees every way
its errors take through forward and backward. The schedule spends few bit-operations Σ_j F_j·b_j with

    mean_i (Σ_j s_j²·V_ji) / ‖g_i‖² ≤ share².

Every layer's noise is taken against its own gradient: a ReLU network computes the same when one layer is scaled up and
the next one down, so precision should not change either, and it does not. The share is 1/√3, at which training was seen
to stop helping (arXiv:2505.19115). That is for noise that stays, while here the probe is smaller than a minibatch and
part of its noise averages out, so that some nets bear more. Layers of few operations and of much noise get more bits,
and all get more as gradients get small beside the noise.

With `curved` noise is summed over layers before it is compared, weighed by their curvature κ_i: a step with a wrong
gradient, θ⁺ = θ − η(∇f + e), changes the loss by (η²/2)·eᵀHe more than an exact one, on average over mean-zero errors
e. That is right for the next step; over many it starves layers of small gradients, which have to learn too.

Where the answer stops: noise is taken as independent between layers and proportional to the squared step; forward
rounding is not mean-zero. It is a criterion for noise, not a proof of descent: that is
`geoquant.training.schedules.sound`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from geoquant.training.numerics import FLOAT, level, step_share
from geoquant.training.precision import FINE, LayerPrecision, next_level
from geoquant.training.schedules.protocol import (
    CURVATURE,
    DECIDE,
    NOISE,
    NOTHING,
    SCHEDULES,
    LayerFacts,
    Moment,
    Proposal,
)


@SCHEDULES.add("numgeom")
@dataclass(frozen=True)
class NumGeom:
    """Cheap widths within a share of noise, found greedily.

    Attributes:
        share: of noise in the gradient, as norms.
        every: steps between decisions; each rounds one layer alone, the first every layer.
        start: bits before anything was measured.
        least: bits that no layer goes below.
        curved: weigh noise by the layers' curvature instead of by their own gradients.
        optimizer: level of the optimizer's state.
    """

    share: float = 0.577
    every: int = 50
    start: int = 6
    least: int = 3
    curved: bool = False
    optimizer: str = FLOAT
    levels: tuple[str, ...] = FINE
    patience: int = 2
    needs_horizon: frozenset[str] = NOTHING

    @property
    def needs(self) -> frozenset[str]:
        """Noise, and curvature where it weighs."""
        return frozenset({NOISE, CURVATURE} if self.curved else {NOISE})

    def agenda(self, step: int, steps_per_epoch: int | None) -> frozenset[str]:
        """Measure and decide after the first step, and every so many."""
        return self.needs | {DECIDE} if step == 1 or step % self.every == 0 else NOTHING

    def propose(self, moment: Moment) -> dict[str, Proposal]:
        """Propose cheap widths within the share."""
        facts = moment.layers
        if any(one.noise is None or one.gradient_share is None for one in facts.values()):
            first = LayerPrecision.of(next_level(self.levels, self.start), None, self.optimizer)
            return dict.fromkeys(facts, Proposal(first, "nothing measured yet"))
        weights = [self._weight(one) for one in facts.values()]
        energy = sum(k * (one.gradient_share or 0.0) ** 2 for k, one in zip(weights, facts.values(), strict=True))
        noise = {name: sum(k * e for k, e in zip(weights, one.noise or (), strict=True)) for name, one in facts.items()}
        menu = tuple(name for name in self.levels if level(name).bits >= self.least)
        names = greedy_levels(noise, {name: one.flops for name, one in facts.items()}, self.share**2 * energy, menu)
        spent = sum(noise[name] * step_share(names[name]) ** 2 for name in names)
        ratio = math.sqrt(spent / energy) if energy else math.inf
        return {
            name: Proposal(
                LayerPrecision.of(names[name], names[name], self.optimizer),
                f"noise {math.sqrt(noise[name] / energy) * step_share(names[name]) if energy else math.inf:.3f} of the "
                f"gradient, {ratio:.3f} in all, share {self.share}",
            )
            for name in facts
        }

    def _weight(self, layer: LayerFacts) -> float:
        if self.curved:
            return layer.curvature or 0.0
        return 1 / layer.gradient_share**2 if layer.gradient_share else 0.0


def greedy_levels(
    noise: dict[str, float], flops: dict[str, float], allowed: float, menu: tuple[str, ...]
) -> dict[str, str]:
    """Return a level per layer with Σ noise·step² ≤ allowed and few Σ flops·bits, by steps of best value.

    Starts everywhere at the first of `menu` and takes, again and again, the step up that removes most noise per
    bit-operation. Where not even the last level is enough, or noise is not finite, all layers get it.

    Not the exact optimum (`geoquant.allocation.cheapest_within`), for a reason: answers to a little more and a little
    less noise are nested here, while optima are unlike each other. Bits that are given at once and taken back late
    would add up over them.

    >>> greedy_levels({"big": 1.0, "small": 1.0}, {"big": 100.0, "small": 1.0}, 0.03, ("int3", "int4", "int8"))
    {'big': 'int4', 'small': 'int8'}
    """
    chosen = dict.fromkeys(noise, 0)
    squares = [step_share(name) ** 2 for name in menu]
    bits = [level(name).bits for name in menu]

    def spent() -> float:
        return sum(noise[name] * squares[place] for name, place in chosen.items())

    def value(name: str) -> float:
        place = chosen[name]
        gain = noise[name] * (squares[place] - squares[place + 1])
        return gain / ((flops[name] + 1e-9) * (bits[place + 1] - bits[place]))

    while not spent() <= allowed:
        open_ones = [name for name, place in chosen.items() if place + 1 < len(menu)]
        if not open_ones:
            break
        chosen[max(open_ones, key=value)] += 1
    return {name: menu[place] for name, place in chosen.items()}
