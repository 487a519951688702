"""Descend on fractional bits, then round down.

The gradient strategy of "Curvature-Guided Transformer Quantization" (docs/sources.md): minimise
sum_l kappa_l * 2**(-a_l * b_l) over real b_l between each site's narrowest and widest width, within the
budget, then round down and spend what is left greedily. The source has a_l = 1; here kappa_l and a_l are fitted
to each site's measured damages, so that measured curves may fall faster.

The descent is projected gradient descent, each step divided by the curvature of its own coordinate (kappa
ranges over decades, and plain steps would not move most sites); the projection onto box and budget is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from geoquant.allocation.greedy import ascend
from geoquant.allocation.ladder import Ladders, ladders, round_down
from geoquant.allocation.problem import IntArray, Problem
from geoquant.allocation.protocol import strategy
from geoquant.arrays import Floats

STEPS = 500
SLOPES = (0.25, 8.0)


@dataclass(frozen=True, eq=False)
class Relaxed:
    """min sum_l 2**(log_kappa_l - slope_l * b_l), lower <= b <= upper, price . (b - lower) <= room.

    All arrays are (n_sites,); `price` is cost per bit.
    """

    log_kappa: Floats
    slope: Floats
    lower: Floats
    upper: Floats
    price: Floats
    room: float

    def project(self, bits: Floats, metric: Floats) -> Floats:
        """Return the nearest feasible bits in the norm sum_l metric_l * (b_l - bits_l)**2."""
        pull = self.price / metric

        def at(multiplier: float) -> Floats:
            return np.clip(bits - multiplier * pull, self.lower, self.upper)

        def used(multiplier: float) -> float:
            return float(self.price @ (at(multiplier) - self.lower))

        if used(0.0) <= self.room:
            return at(0.0)
        # what is used falls in straight pieces between the multipliers at which a site meets its box
        with np.errstate(divide="ignore", invalid="ignore"):
            corners = np.concatenate([(bits - self.upper) / pull, (bits - self.lower) / pull])
        corners = np.unique(np.concatenate([[0.0], corners[np.isfinite(corners) & (corners > 0)]]))
        low, high = 0, len(corners) - 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if used(corners[middle]) <= self.room else (middle, high)
        over, under = used(corners[low]), used(corners[high])
        share = (over - self.room) / (over - under) if over > under else 1.0
        return at(corners[low] + share * (corners[high] - corners[low]))

    def value(self, bits: Floats) -> float:
        """Return the modelled damage."""
        return float(np.exp2(self.log_kappa - self.slope * bits).sum())


def fitted(widths: Floats, damage: Floats) -> tuple[float, float]:
    """Return (log2 kappa, slope) of the line through log2(damage) against width, by least squares.

    Damages of zero or less have no logarithm and are left out; with fewer than two others the slope is 1.

    >>> fitted(np.array([2.0, 3.0, 4.0]), np.array([4.0, 1.0, 0.25]))
    (6.0, 2.0)
    """
    seen = damage > 0
    if not seen.any():
        return -np.inf, 1.0
    width, level = widths[seen], np.log2(damage[seen])
    if seen.sum() < 2:
        return float(level[0] + width[0]), 1.0
    centred = width - width.mean()
    slope = float(np.clip(-(centred @ level) / (centred @ centred), *SLOPES))
    return float(level.mean() + slope * width.mean()), slope


def descend(relaxed: Relaxed) -> Floats:
    """Return the minimising bits (n_sites,) by scaled projected gradient descent.

    Two equal sites and two bits to share:

    >>> one = np.ones(2)
    >>> descend(Relaxed(0 * one, one, 0 * one, 8 * one, one, 2.0)).round(6).tolist()
    [1.0, 1.0]
    """
    level = np.where(np.isfinite(relaxed.log_kappa), relaxed.log_kappa, -1e3)
    level = level - (level - relaxed.slope * relaxed.lower).max()  # a common factor does not move the minimum
    scaled = Relaxed(level, relaxed.slope, relaxed.lower, relaxed.upper, relaxed.price, relaxed.room)
    bits = scaled.project(scaled.lower + 0.5 * (scaled.upper - scaled.lower), np.ones(len(level)))
    value, step = scaled.value(bits), 1.0
    for _ in range(STEPS):
        damage = np.exp2(scaled.log_kappa - scaled.slope * bits)
        rate = np.log(2) * scaled.slope
        metric = np.maximum(damage * rate**2, 1e-280)
        trial = scaled.project(bits + step * np.minimum(1 / rate, 1e3), metric)
        better = scaled.value(trial)
        if better < value:
            done = value - better <= 1e-13 * value
            bits, value, step = trial, better, min(1.0, 2 * step)
            if done:
                break
        elif step < 1e-3:
            break
        else:
            step /= 2
    return bits


def gradient_bits(problem: Problem, steps: Ladders) -> Floats:
    """Return fractional bits (n_sites,): the relaxed optimum for each budget alone, the smallest of them per site."""
    lines = [fitted(widths, damage) for widths, damage in zip(steps.widths, steps.damage, strict=True)]
    log_kappa, slope = (np.array(column) for column in zip(*lines, strict=True))
    lower, upper = steps.narrowest, steps.widest
    bits = upper
    for limit, first, last in zip(
        problem.limits.tolist(), steps.cost_of(0 * steps.top), steps.cost_of(steps.top), strict=True
    ):
        price = np.maximum(last - first, 0) / np.where(upper > lower, upper - lower, 1.0)
        room = float(limit - first.sum())
        bits = np.minimum(bits, descend(Relaxed(log_kappa, slope, lower, upper, price, room)))
    return bits


@strategy("gradient")
def gradient(problem: Problem, start: IntArray) -> tuple[IntArray, tuple[str, ...]]:
    """Descend on fractional bits, round down, fill greedily; see `geoquant.allocation.gradient`."""
    steps = ladders(problem, start)
    rungs = round_down(problem, steps, gradient_bits(problem, steps))
    return ascend(problem, steps.selection(rungs)), ()
