"""One rung per width: what do strategies that think in bits, not in choices, see of a problem?

The width-based strategies know one grid per width, and that more bits cost more. Ladders give them that
view of any problem: per site the cheapest choice of every width (of equally cheap ones the least harmful),
without those that a wider one undercuts, starting at the site's choice in the smallest plan.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from geoquant.allocation.problem import IntArray, Problem
from geoquant.arrays import Floats

BISECTIONS = 40
SAME_WIDTH = 1e-9


@dataclass(frozen=True, eq=False)
class Ladders:
    """The rungs of all sites, ascending in width; short ladders are padded on the right.

    Attributes:
        choices: (n_sites, rungs) columns of the problem.
        widths: (n_sites, rungs) bits, infinite where padded.
        costs: (n_budgets, n_sites, rungs).
        damage: (n_sites, rungs), NaN where padded.
        top: (n_sites,) index of the last rung.
    """

    choices: IntArray
    widths: Floats
    costs: IntArray
    damage: Floats
    top: IntArray

    @property
    def narrowest(self) -> Floats:
        """(n_sites,) width of the first rung."""
        return self.widths[:, 0]

    @property
    def widest(self) -> Floats:
        """(n_sites,) width of the last rung."""
        return np.asarray(self.widths[np.arange(len(self.top)), self.top], np.float64)

    def below(self, bits: Floats) -> IntArray:
        """Return the last rungs (n_sites,) that are not wider than `bits` (n_sites,), or the first ones."""
        return np.asarray(np.maximum((self.widths <= bits[:, None] + SAME_WIDTH).sum(axis=1) - 1, 0), np.int64)

    def cost_of(self, rungs: IntArray) -> IntArray:
        """Return the cost (n_budgets, n_sites) of standing on `rungs` (n_sites,)."""
        return np.asarray(self.costs[:, np.arange(len(rungs)), rungs], np.int64)

    def cost_at(self, bits: Floats) -> Floats:
        """Return the cost (n_budgets, n_sites) of fractional `bits`, linear between rungs and flat outside."""
        rows, low = np.arange(len(bits)), self.below(bits)
        high = np.minimum(low + 1, self.top)
        step = np.where(high > low, self.widths[rows, high] - self.widths[rows, low], 1.0)
        share = np.clip((bits - self.widths[rows, low]) / step, 0, 1)
        return self.cost_of(low) * (1 - share) + self.cost_of(high) * share

    def selection(self, rungs: IntArray) -> IntArray:
        """Return the problem's columns (n_sites,) that stand on `rungs`."""
        return np.asarray(self.choices[np.arange(len(rungs)), rungs], np.int64)


def ladders(problem: Problem, start: IntArray) -> Ladders:
    """Build the ladders of all sites; `start` (n_sites,) holds the first rungs.

    >>> ladders(Problem([[4.0, 5.0, 1.0]], widths=[2, 2, 3]), np.array([0])).choices.tolist()
    [[0, 2]]
    """
    rungs = [_rungs(problem, site, int(choice)) for site, choice in enumerate(start)]
    top = np.array([len(columns) - 1 for columns in rungs])
    longest = int(top.max()) + 1
    choices = np.array([columns + columns[-1:] * (longest - len(columns)) for columns in rungs])
    rows = np.arange(len(rungs))[:, None]
    padded = np.arange(longest) > top[:, None]
    return Ladders(
        choices,
        np.where(padded, np.inf, problem.width_table[rows, choices]),
        problem.cost_tables[:, rows, choices],
        np.where(padded, np.nan, problem.damage[rows, choices]),
        top,
    )


def _rungs(problem: Problem, site: int, first: int) -> list[int]:
    width, costs = problem.width_table[site], problem.cost_tables[:, site]
    order = np.lexsort((problem.damage[site], costs.sum(axis=0), width))
    rungs = [first]
    for choice in order[problem.mask[site, order] & (width[order] > width[first])].tolist():
        if width[choice] == width[rungs[-1]]:
            continue
        while len(rungs) > 1 and len(costs) and (costs[:, rungs[-1]] >= costs[:, choice]).all():
            rungs.pop()
        rungs.append(choice)
    return rungs


def largest_feasible(feasible: Callable[[float], bool]) -> float:
    """Return, to `BISECTIONS` halvings, the largest t in [0, 1] that is feasible when 0 is, and 1 if that is.

    >>> round(largest_feasible(lambda t: t * t <= 0.25), 9)
    0.5
    """
    if feasible(1.0):
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if feasible(middle) else (low, middle)
    return low


def round_down(problem: Problem, steps: Ladders, bits: Floats) -> IntArray:
    """Return rungs (n_sites,) not above the fractional `bits` (n_sites,) that fit.

    Costs that are not linear in the width can make plain rounding down exceed a budget; then all bits are
    drawn towards the first rungs until it fits.
    """

    def rungs(t: float) -> IntArray:
        return steps.below(steps.narrowest + t * (bits - steps.narrowest))

    return rungs(largest_feasible(lambda t: bool((steps.cost_of(rungs(t)).sum(axis=1) <= problem.limits).all())))


def fill_by_remainder(problem: Problem, steps: Ladders, rungs: IntArray, bits: Floats) -> IntArray:
    """Climb single rungs, the site first whose `bits` lie furthest above its rung, while one fits."""
    rungs = np.array(rungs)
    left = problem.limits - steps.cost_of(rungs).sum(axis=1)
    heap = [(steps.widths[site, rung] - bits[site], site) for site, rung in enumerate(rungs.tolist())]
    heapq.heapify(heap)
    while heap:
        _, site = heapq.heappop(heap)
        rung = int(rungs[site])
        if rung == steps.top[site]:
            continue
        extra = steps.costs[:, site, rung + 1] - steps.costs[:, site, rung]
        if (extra <= left).all():
            left = left - extra
            rungs[site] = rung + 1
            heapq.heappush(heap, (steps.widths[site, rung + 1] - bits[site], site))
    return rungs
