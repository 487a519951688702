"""Spend the budget where the next step saves most damage per cost.

The greedy strategy of "Curvature-Guided Transformer Quantization" (docs/sources.md): start from the smallest
plan and add bits one step at a time. For layers of equal size with convex damage this is exact
(Fox 1966, marginal analysis); with unequal sizes a large step may no longer fit where two small ones took
the room, and it is a heuristic.
"""

from __future__ import annotations

import heapq

import numpy as np

from geoquant.allocation.problem import IntArray, Problem
from geoquant.allocation.protocol import strategy
from geoquant.arrays import Floats


def ascend(problem: Problem, selection: IntArray) -> IntArray:
    """Take the step with the most damage saved per relative cost, again and again, while one fits.

    A step may skip choices (damages need not be convex). A step that is no dearer comes first. Costs of several
    budgets are added up after dividing each by what its budget has left at the start. Under the objective
    "worst" only the site with the worst damage is stepped until it cannot be; then the others follow.

    Args:
        problem: without groups.
        selection: (n_sites,) feasible; where to start.

    >>> from geoquant.allocation import Cost
    >>> bits = Cost("bits", [[1, 2, 3]] * 3, 6)
    >>> ascend(Problem([[9.0, 3.0, 1.0], [4.0, 2.0, 1.0], [1.0, 0.5, 0.2]], (bits,)), np.zeros(3, int)).tolist()
    [2, 1, 0]
    """
    selection = np.array(selection)
    tables = problem.cost_tables
    rows = np.arange(len(selection))
    left = problem.limits - tables[:, rows, selection].sum(axis=1)
    relative = (tables / np.maximum(left, 1)[:, None, None]).sum(axis=0)
    worst_first = problem.objective == "worst"

    def entry(site: int) -> tuple[float, int, int] | None:
        step = _best_step(problem.damage[site], relative[site], tables[:, site], int(selection[site]), left)
        if step is None:
            return None
        choice, ratio = step
        return (-problem.damage[site, selection[site]] if worst_first else -ratio), site, choice

    heap = [item for site in rows.tolist() if (item := entry(site)) is not None]
    heapq.heapify(heap)
    while heap:
        _, site, choice = heapq.heappop(heap)
        extra = tables[:, site, choice] - tables[:, site, selection[site]]
        if (extra <= left).all():
            left -= extra
            selection[site] = choice
        item = entry(site)  # the next step, or another one when this one no longer fits
        if item is not None:
            heapq.heappush(heap, item)
    return selection


def _best_step(
    damage: Floats, relative: Floats, costs: IntArray, current: int, left: IntArray
) -> tuple[int, float] | None:
    """Return the choice that saves most per relative cost among those that fit, and that ratio."""
    saved = damage[current] - damage
    extra = relative - relative[current]
    fits = (costs - costs[:, [current]] <= left[:, None]).all(axis=0) & (saved > 0)
    if not fits.any():
        return None
    free = fits & (extra <= 0)
    if free.any():
        return int(np.where(free, saved, -np.inf).argmax()), np.inf
    ratio = np.where(fits, saved / np.where(extra > 0, extra, 1), -np.inf)
    return int(ratio.argmax()), float(ratio.max())


@strategy("greedy")
def greedy(problem: Problem, start: IntArray) -> tuple[IntArray, tuple[str, ...]]:
    """Start from the smallest plan and step where damage falls most per cost."""
    return ascend(problem, start), ()
