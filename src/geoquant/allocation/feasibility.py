"""Is there any selection within all budgets, and what is the smallest?

With one budget the answer is exact and immediate: every site takes its cheapest choice. With several the
question is as hard as the allocation itself, so a short descent is tried first and HiGHS decides the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from geoquant.allocation import exchange, highs
from geoquant.allocation.instance import Instance
from geoquant.allocation.problem import IntArray, Problem
from geoquant.arrays import Floats
from geoquant.errors import BudgetError

NODES = 100_000
TIGHTENINGS = 8


@dataclass(frozen=True, eq=False)
class Found:
    """A feasible selection, or None; then `impossible` says whether that is proven."""

    selection: IntArray | None
    impossible: bool = False


def minimum_costs(problem: Problem) -> tuple[int, ...]:
    """Return the smallest possible total in each budget, each taken alone (groups respected).

    >>> from geoquant.allocation import Cost
    >>> minimum_costs(Problem([[4.0, 1.0], [3.0, 2.0]], (Cost("bits", [[20, 40], [10, 30]], 50),)))
    (30,)
    """
    block = problem.merged("sum").problem
    return tuple(int(np.where(block.mask, c.table, np.iinfo(np.int64).max).min(axis=1).sum()) for c in block.costs)


def cheapest(problem: Problem) -> IntArray:
    """Return a feasible selection (n_sites,) of small cost, of a problem without groups.

    With one budget it is the smallest plan there is (of equally small ones, the one of least damage).

    Raises:
        BudgetError: nothing fits; the message names the smallest possible total of each budget.

    >>> from geoquant.allocation import Cost
    >>> cheapest(Problem([[4.0, 1.0], [3.0, 2.0]], (Cost("bits", [[20, 40], [10, 30]], 20),)))
    Traceback (most recent call last):
    ...
    geoquant.errors.BudgetError: a budget of 20 bits is below the smallest possible plan, which takes 30 bits
    """
    smallest = minimum_costs(problem)
    _check_each(problem, smallest)
    relative = relative_cost(problem.cost_tables, problem.limits)
    relative = np.where(problem.mask, relative, np.inf)
    light = relative == relative.min(axis=1, keepdims=True)
    selection: IntArray = np.where(light, problem.damage, np.inf).argmin(axis=1)
    if problem.fits(selection):
        return selection
    instance = Instance.of(problem)
    found = None if instance is None else any_feasible(instance).selection
    if found is None:
        each = zip(problem.costs, smallest, strict=True)
        budgets = ", ".join(f"{cost.limit} {cost.name} (at least {least})" for cost, least in each)
        raise BudgetError(f"no plan was found within all budgets at once, though each could be met alone: {budgets}")
    return found


def _check_each(problem: Problem, smallest: tuple[int, ...]) -> None:
    short = [
        f"a budget of {cost.limit} {cost.name} is below the smallest possible plan, which takes {least} {cost.name}"
        for cost, least in zip(problem.costs, smallest, strict=True)
        if least > cost.limit
    ]
    if short:
        raise BudgetError("; ".join(short))


def relative_cost(cost: IntArray, capacity: IntArray) -> Floats:
    """Return (n, k): the sum over budgets of cost (m, n, k) / capacity (m,), zero capacities counting as one.

    >>> relative_cost(np.array([[[2, 4]], [[1, 0]]]), np.array([4, 2])).tolist()
    [[1.0, 1.0]]
    """
    return np.asarray((cost / np.maximum(capacity, 1)[:, None, None]).sum(axis=0), np.float64)


def any_feasible(instance: Instance) -> Found:
    """Return some feasible selection, or the proof (HiGHS's) that there is none."""
    free = np.where(instance.present, 0.0, np.inf)
    if len(instance.capacity) <= 1:
        costless = instance.present & (instance.cost == 0).all(axis=0)
        return Found(np.where(costless, instance.damage, np.inf).argmin(axis=1))
    relative = relative_cost(instance.cost, instance.capacity)
    start = np.where(instance.present, relative, np.inf).argmin(axis=1)
    selection = exchange.repair(instance, start, free)
    tight = instance
    for attempt in range(TIGHTENINGS):
        if selection is not None:
            return Found(selection)
        answer = highs.branch(replace(tight, damage=free), 1.0, NODES)
        if answer.selection is None:
            return Found(None, impossible=answer.infeasible and attempt == 0)
        # HiGHS may overshoot a large integer capacity by its tolerance: mend that, or ask for less
        selection = exchange.repair(instance, answer.selection, free)
        over = np.maximum(instance.usage(answer.selection) - instance.capacity, 0)
        tight = replace(tight, capacity=np.maximum(tight.capacity - over, 0))
    return Found(selection)
