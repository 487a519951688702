"""Bits in proportion to the logarithm of a layer's curvature.

The proportional strategy of "Curvature-Guided Transformer Quantization" (docs/sources.md): b_l = s *
log2(kappa_l), with s chosen so that the budget is used, clipped to the allowed widths and rounded down; what is
left goes to the largest remainders. It is a baseline: the optimum is affine in log2(kappa), not
proportional to it (see `continuous`), and measuring damage in another unit changes this plan, but not the optimum.

A problem holds damages, not curvatures. With the source's own model, damage = kappa * 2**-b, kappa is the
damage at any width times 2**width; here the width is the first one from 4 bits on (exact for that model).
"""

from __future__ import annotations

import numpy as np

from geoquant.allocation.ladder import Ladders, fill_by_remainder, ladders, largest_feasible, round_down
from geoquant.allocation.problem import IntArray, Problem
from geoquant.allocation.protocol import strategy
from geoquant.arrays import Floats

REFERENCE_WIDTH = 4.0


def curvature(steps: Ladders) -> Floats:
    """Return kappa (n_sites,) of the model damage = kappa * 2**-width, from the first width of 4 bits or more.

    >>> problem = Problem([[1.0, 0.25]], widths=[3, 5])
    >>> curvature(ladders(problem, np.array([0]))).tolist()
    [8.0]
    """
    at = np.minimum((steps.widths < REFERENCE_WIDTH).sum(axis=1), steps.top)
    rows = np.arange(len(at))
    return np.asarray(steps.damage[rows, at] * np.exp2(steps.widths[rows, at]), np.float64)


def proportional_bits(problem: Problem, steps: Ladders) -> Floats:
    """Return the fractional bits (n_sites,), clipped to each ladder, that use the budget.

    Curvatures of 1 or less have no positive logarithm and stay at the bottom; if no site has more, all share alike.

    >>> from geoquant.allocation import Cost
    >>> widths = np.arange(2, 9)
    >>> problem = Problem([16 * 0.5**widths, 256 * 0.5**widths], (Cost("bits", [widths, widths], 9),), widths=widths)
    >>> proportional_bits(problem, ladders(problem, np.array([0, 0]))).round(6).tolist()
    [3.0, 6.0]
    """
    share = np.log2(np.maximum(curvature(steps), 1.0))
    share = share if share.any() else np.ones(len(share))
    largest = float((steps.widest[share > 0] / share[share > 0]).max())

    def bits(t: float) -> Floats:
        return np.clip(t * largest * share, steps.narrowest, steps.widest)

    return bits(largest_feasible(lambda t: bool((steps.cost_at(bits(t)).sum(axis=1) <= problem.limits).all())))


@strategy("proportional")
def proportional(problem: Problem, start: IntArray) -> tuple[IntArray, tuple[str, ...]]:
    """Give bits in proportion to log2 of the curvature; see `geoquant.allocation.proportional`."""
    steps = ladders(problem, start)
    bits = proportional_bits(problem, steps)
    flat = int((curvature(steps) <= 1).sum())
    notes = (f"{flat} of {len(start)} sites have a curvature of 1 or less: no bits from the logarithm",) if flat else ()
    return steps.selection(fill_by_remainder(problem, steps, round_down(problem, steps, bits), bits)), notes
