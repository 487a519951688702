"""How small can the worst damage of any site be kept?

Only damages that occur can be the answer, so it is found by bisection over their sorted values: a value is
within reach when the sites' cheapest choices that stay at or below it fit the budgets. With one budget each
such question is answered exactly; with several, HiGHS answers it. Of all selections with the best worst
damage, the one with the least sum is returned.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from geoquant.allocation.exact import Proven, least_sum
from geoquant.allocation.feasibility import Found, any_feasible, cheapest
from geoquant.allocation.instance import normalized
from geoquant.allocation.problem import Problem
from geoquant.arrays import Floats


def least_worst(problem: Problem) -> Proven:
    """Minimise the largest damage; the sum of damages decides between equals.

    Args:
        problem: groups allowed; its own objective is not looked at.

    Raises:
        BudgetError: nothing fits.

    >>> from geoquant.allocation import Cost
    >>> problem = Problem([[4.0, 0.0], [3.0, 0.0]], (Cost("bits", [[0, 2], [0, 2]], 3),))
    >>> answer = least_worst(problem)
    >>> answer.selection.tolist(), answer.bound
    ([1, 0], 3.0)
    """
    blocks = problem.merged("worst").problem
    feasible = cheapest(blocks)
    levels = _levels(blocks)
    rows = np.arange(blocks.n_sites)
    low, high = 0, int(np.searchsorted(levels, blocks.damage[rows, feasible].max()))
    proven = 0  # no selection stays below levels[proven]
    while low < high:
        middle = (low + high) // 2
        found = _within(blocks, levels[middle])
        if found.selection is None:
            low = middle + 1
            proven = low if found.impossible else proven
        else:
            feasible = found.selection
            high = int(np.searchsorted(levels, blocks.damage[rows, feasible].max()))
    best = levels[high]
    calm = replace(problem, allowed=problem.mask & (problem.damage <= best), objective="sum").merged()
    answer = least_sum(calm.problem, known=feasible)
    notes = (f"no site above {best:.6g}; of those selections, {answer.notes[0]} in the sum",)
    return Proven(calm.expand(answer.selection), float(levels[proven]), notes)


def worst_bound(problem: Problem) -> float:
    """Return a lower bound of the worst damage: exact for one budget, each budget taken alone for several."""
    blocks = problem.merged("worst").problem
    levels = _levels(blocks)
    low, high = 0, len(levels) - 1
    while low < high:
        middle = (low + high) // 2
        if normalized(_capped(blocks, levels[middle]), blocks.cost_tables, blocks.limits) is None:
            low = middle + 1
        else:
            high = middle
    return float(levels[low])


def _levels(blocks: Problem) -> Floats:
    """Return the damages that can be the worst one, ascending: none is below the best of some site."""
    least = blocks.damage.min(axis=1).max()
    values = np.unique(blocks.damage[blocks.mask])
    return np.asarray(values[values >= least], np.float64)


def _capped(blocks: Problem, level: float) -> Floats:
    return np.where(blocks.damage <= level, blocks.damage, np.inf)


def _within(blocks: Problem, level: float) -> Found:
    instance = normalized(_capped(blocks, level), blocks.cost_tables, blocks.limits)
    return Found(None, impossible=True) if instance is None else any_feasible(instance)
