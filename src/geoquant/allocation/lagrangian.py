"""How little damage could any selection do, at best?

Give each budget a price. Then the sites part: each takes the choice whose damage plus price is least, and

    bound(prices) = sum_i min_j (damage_ij + prices . cost_ij) - prices . capacity

is below every feasible sum, for any prices of 0 or more (Lagrangian duality; Everett 1963, Fisher 1981). The
best prices come from the linear relaxation: for one budget from the lower convex hulls of the sites (Sinha
and Zoltners 1979), exactly; for several from HiGHS. Wrong prices make the bound weaker, never wrong: it is
evaluated here, in float64, with its rounding taken off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize, sparse

from geoquant.allocation.instance import Instance
from geoquant.allocation.problem import IntArray
from geoquant.arrays import Floats

PRICE_ROUNDS = 3
ROUNDING = 4 * float(np.finfo(np.float64).eps)


@dataclass(frozen=True, eq=False)
class Relaxation:
    """Prices, the bound they prove, and a selection near the relaxed optimum (which may not fit).

    Attributes:
        prices: (m,) damage per unit of cost, not negative.
        bound: no feasible sum of damages is smaller.
        reduced: (n, k) how much each choice costs beyond its site's best at these prices; 0 for the best,
            infinite where a choice is gone.
        selection: (n,) the relaxed solution with fractions rounded down.
    """

    prices: Floats
    bound: float
    reduced: Floats
    selection: IntArray


@dataclass(frozen=True, eq=False)
class Segments:
    """Edges of the lower convex hulls of all sites, best ratio of damage saved per cost first.

    Each array is (number of segments,): `site`, the choice a segment leads to, what it costs more and saves.
    """

    site: IntArray
    choice: IntArray
    cost: IntArray
    saving: Floats
    ratio: Floats


def relax(instance: Instance) -> Relaxation:
    """Solve the linear relaxation.

    >>> from geoquant.allocation import Cost, Problem
    >>> bits = Cost("bits", [[0, 2], [0, 2]], 3)
    >>> relaxed = relax(Instance.of(Problem([[4.0, 0.0], [3.0, 0.0]], (bits,))))
    >>> relaxed.prices.tolist(), round(relaxed.bound, 9), relaxed.selection.tolist()
    ([3.0], 3.0, [1, 0])
    """
    if len(instance.capacity) == 0:
        prices, selection = np.zeros(0), instance.damage.argmin(axis=1)
    elif len(instance.capacity) == 1:
        price, selection = _relax_by_hulls(instance)
        prices = np.array([price])
    else:
        prices, selection = _relax_by_linear_program(instance)
    bound, reduced = priced(instance, prices)
    return Relaxation(prices, bound, reduced, selection)


def priced(instance: Instance, prices: Floats) -> tuple[float, Floats]:
    """Return the proven bound at `prices` (m,) and the reduced costs (n, k)."""
    charged = instance.damage + np.tensordot(prices, instance.cost, axes=1)
    best = charged.min(axis=1)
    bill = prices * instance.capacity
    largest = np.where(instance.present, np.abs(instance.damage), 0).max(axis=1)
    slop = ROUNDING * (float((np.abs(best) + largest).sum()) + 2 * float(bill.sum()))
    bound = math.fsum([*best.tolist(), *(-bill).tolist()]) - slop
    return bound, charged - best[:, None]


def hull_segments(instance: Instance, budget: int = 0) -> Segments:
    """Return the edges of every site's lower convex hull of damage against one budget's cost, sorted.

    Along each site the ratios fall, so taking the segments in order never skips one of its site.
    """
    damage, cost = instance.damage, instance.cost[budget]
    n = len(damage)
    rows = np.arange(n)
    current = np.where(instance.present & (cost == 0), damage, np.inf).argmin(axis=1)
    ratio_so_far = np.full(n, np.inf)
    parts = []
    while len(rows):
        more = cost[rows] - cost[rows, current[rows], None]
        less = damage[rows, current[rows], None] - damage[rows]
        useful = (more > 0) & (less > 0)
        ratio = np.where(useful, less / np.where(useful, more, 1), 0.0)
        steepest = ratio.max(axis=1)
        # of equally steep steps the longest, so that points inside an edge do not become corners
        step = np.where(ratio == steepest[:, None], more, -1).argmax(axis=1)
        going = steepest > 0
        rows, step, position = rows[going], step[going], np.flatnonzero(going)
        ratio_so_far[rows] = np.minimum(ratio_so_far[rows], steepest[going])
        parts.append((rows, step, more[position, step], less[position, step], ratio_so_far[rows]))
        current[rows] = step
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = np.argsort(-columns[4], kind="stable")
    site, choice, extra, saving, ratios = (column[order] for column in columns)
    return Segments(site, choice, extra, saving, ratios)


def _relax_by_hulls(instance: Instance, budget: int = 0) -> tuple[float, IntArray]:
    """Take hull segments, best ratio first, until one does not fit: its ratio is the exact price."""
    segments = hull_segments(instance, budget)
    spent = np.cumsum(segments.cost)
    taken = int(np.searchsorted(spent, instance.capacity[budget], side="right"))
    price = float(segments.ratio[taken]) if taken < len(spent) else 0.0
    selection = np.where(instance.present & (instance.cost[budget] == 0), instance.damage, np.inf).argmin(axis=1)
    # later segments of a site lead further, so the last assignment wins; numpy keeps that order
    selection[segments.site[:taken]] = segments.choice[:taken]
    return price, selection


def _relax_by_linear_program(instance: Instance) -> tuple[Floats, IntArray]:
    """Let HiGHS solve the relaxation of several budgets; its dual values are the prices."""
    site, choice = np.nonzero(instance.present)
    n, columns = len(instance.damage), np.arange(len(site))
    best = instance.damage.min(axis=1)
    objective = (instance.damage - best[:, None])[site, choice]
    scale = float(objective.max()) or 1.0
    unit = np.maximum(instance.capacity, 1).astype(np.float64)
    answer = optimize.linprog(
        objective / scale,
        A_ub=sparse.csr_array(instance.cost[:, site, choice] / unit[:, None]),
        b_ub=instance.capacity / unit,
        A_eq=sparse.csr_array((np.ones(len(site)), (site, columns)), shape=(n, len(site))),
        b_eq=np.ones(n),
        bounds=(0, 1),
        method="highs",
    )
    if answer.x is None:  # the relaxation has no point: neither has the problem; the caller looks closer
        return np.zeros(len(unit)), instance.damage.argmin(axis=1)
    prices = np.maximum(-answer.ineqlin.marginals, 0) * scale / unit
    share = np.zeros(instance.damage.shape)
    share[site, choice] = answer.x
    whole = share.max(axis=1) > 0.5
    return _sharpened(instance, prices), np.where(whole, share.argmax(axis=1), _lightest(instance))


def _sharpened(instance: Instance, prices: Floats) -> Floats:
    """Raise the bound by setting one price at a time to its exact best, the others held.

    HiGHS's dual values carry its tolerance of 1e-7 times the largest damage, which small damages notice.
    """
    best, _ = priced(instance, prices)
    for budget in [*range(len(prices))] * PRICE_ROUNDS:
        others = np.where(np.arange(len(prices)) == budget, 0.0, prices)
        charged = instance.damage + np.tensordot(others, instance.cost, axes=1)
        price, _ = _relax_by_hulls(replace(instance, damage=charged), budget)
        trial = np.where(np.arange(len(prices)) == budget, price, prices)
        bound, _ = priced(instance, trial)
        if bound > best:
            best, prices = bound, trial
    return prices


def _lightest(instance: Instance) -> IntArray:
    """Return per site the choice with the least cost, each budget measured by its capacity."""
    relative = (instance.cost / np.maximum(instance.capacity, 1)[:, None, None]).sum(axis=0)
    return np.asarray(np.where(instance.present, relative, np.inf).argmin(axis=1), np.int64)
