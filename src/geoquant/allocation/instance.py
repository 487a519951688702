"""What is left of a problem once everything obvious has been settled?

The exact solvers work on this normal form of a merged problem: every site's smallest cost is zero in every
budget (what it must pay anyway is taken off the capacity), choices that can never be taken or that another
choice beats in damage and in every cost are gone, budgets that cannot bind are gone, and costs share no
common divisor. None of it changes the set of optimal values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from geoquant.allocation.problem import BoolArray, IntArray, Problem
from geoquant.arrays import Floats


@dataclass(frozen=True, eq=False)
class Instance:
    """A multiple-choice knapsack in normal form.

    Attributes:
        damage: (n, k) float64, infinite where a choice is gone.
        cost: (m, n, k) int64, each site's smallest is 0 in every budget; 0 where a choice is gone.
        capacity: (m,) int64, not negative.
    """

    damage: Floats
    cost: IntArray
    capacity: IntArray

    @staticmethod
    def of(problem: Problem) -> Instance | None:
        """Normalise a merged problem; None when one of its budgets alone already rules out every selection.

        >>> from geoquant.allocation import Cost, Problem
        >>> bits = Cost("bits", [[20, 40], [10, 30]], 55)
        >>> instance = Instance.of(Problem([[4.0, 1.0], [3.0, 2.0]], (bits,)))
        >>> instance.cost.tolist(), instance.capacity.tolist()
        ([[[0, 1], [0, 1]]], [1])
        """
        return normalized(problem.damage, problem.cost_tables, problem.limits)

    @property
    def present(self) -> BoolArray:
        """(n, k) where a choice is left."""
        return np.isfinite(self.damage)

    def usage(self, selection: IntArray) -> IntArray:
        """Return the cost of `selection` in every budget (m,)."""
        return np.asarray(self.cost[:, np.arange(len(selection)), selection].sum(axis=1), np.int64)

    def fits(self, selection: IntArray) -> bool:
        """Say whether `selection` stays within every capacity."""
        return bool((self.usage(selection) <= self.capacity).all())


def normalized(damage: Floats, cost: IntArray, capacity: IntArray) -> Instance | None:
    """Bring tables (n, k), (m, n, k), (m,) to normal form; None when a budget alone cannot be kept."""
    while True:
        present = np.isfinite(damage)
        if not present.any(axis=1).all():
            return None
        floor = np.where(present, cost, np.iinfo(np.int64).max).min(axis=2, initial=np.iinfo(np.int64).max)
        cost = np.where(present, cost - floor[:, :, None], 0)
        capacity = capacity - floor.sum(axis=1)
        if (capacity < 0).any():
            return None
        damage = np.where((cost > capacity[:, None, None]).any(axis=0), np.inf, damage)
        damage = np.where(dominated(damage, cost), np.inf, damage)
        if np.array_equal(present, np.isfinite(damage)):
            return Instance(damage, *_tightest(cost, capacity))


def dominated(damage: Floats, cost: IntArray) -> BoolArray:
    """Mark choices (n, k) that another one of the same site beats or ties in damage and in all costs.

    Of equal choices the first stays.

    >>> dominated(np.array([[3.0, 2.0, 2.0]]), np.array([[[1, 1, 2]]])).tolist()
    [[True, False, True]]
    """
    no_worse = damage[:, None, :] <= damage[:, :, None]  # (n, choice, the other one)
    better = damage[:, None, :] < damage[:, :, None]
    for table in cost:
        no_worse &= table[:, None, :] <= table[:, :, None]
        better |= table[:, None, :] < table[:, :, None]
    columns = np.arange(damage.shape[1])
    present = np.isfinite(damage)
    beaten = no_worse & (better | (columns < columns[:, None])) & present[:, None, :]
    return np.asarray(beaten.any(axis=2) & present, np.bool_)


def _tightest(cost: IntArray, capacity: IntArray) -> tuple[IntArray, IntArray]:
    """Drop budgets that cannot bind and duplicates, and divide the others by their common divisor."""
    kept: dict[bytes, tuple[IntArray, int]] = {}
    for table, limit in zip(cost, capacity.tolist(), strict=True):
        if int(table.max(axis=1).sum()) <= limit:
            continue
        divisor = int(np.gcd.reduce(table, axis=None))
        reduced, limit = table // divisor, limit // divisor
        key = reduced.tobytes()
        kept[key] = (reduced, min(limit, kept.get(key, (reduced, limit))[1]))
    tables = np.array([table for table, _ in kept.values()], np.int64).reshape(len(kept), *cost.shape[1:])
    return tables, np.array([limit for _, limit in kept.values()], np.int64)
