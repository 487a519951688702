"""Draw allocations by chance and keep the best: the baseline that any thought should beat.

One of the baselines of "Curvature-Guided Bit Allocation" (docs/sources.md): 100 random allocations. Drawn blindly, most
would exceed the budget or leave half of it; here the sites are visited in random order, and each draws evenly among
the choices that still fit. The same problem gives the same draws.
"""

from __future__ import annotations

import numpy as np

from geoquant.allocation.problem import IntArray, Problem
from geoquant.allocation.protocol import strategy

ALLOCATIONS = 100
SEED = 0


def random_selections(problem: Problem, start: IntArray, count: int, seed: int) -> IntArray:
    """Return `count` feasible selections (count, n_sites); `start` is what sites take that were not visited yet.

    Args:
        problem: without groups.
        start: (n_sites,) feasible.
        count: how many.
        seed: of all draws.

    >>> from geoquant.allocation import Cost
    >>> problem = Problem(np.zeros((2, 3)), (Cost("bits", [[1, 2, 3]] * 2, 4),))
    >>> drawn = random_selections(problem, np.array([0, 0]), 50, seed=0)
    >>> sorted(set(map(tuple, drawn.tolist())))
    [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0)]
    """
    draw = np.random.default_rng(seed)
    tables = problem.cost_tables
    rows = np.arange(problem.n_sites)
    selections = np.tile(start, (count, 1))
    order = np.argsort(draw.random((count, problem.n_sites)), axis=1)
    left = np.repeat((problem.limits - tables[:, rows, start].sum(axis=1))[:, None], count, axis=1)
    for site in order.T:  # (count,): each allocation visits a site of its own
        extra = tables[:, site] - tables[:, site, start[site]][:, :, None]
        fits = problem.mask[site] & (extra <= left[:, :, None]).all(axis=0)
        chosen = np.where(fits, draw.random(fits.shape), -1.0).argmax(axis=1)
        selections[np.arange(count), site] = chosen
        left -= np.take_along_axis(extra, chosen[None, :, None], axis=2)[:, :, 0]
    return selections


@strategy("random_search")
def random_search(problem: Problem, start: IntArray) -> tuple[IntArray, tuple[str, ...]]:
    """Keep the best of 100 random allocations; see `geoquant.allocation.random_search`."""
    drawn = random_selections(problem, start, ALLOCATIONS, SEED)
    return min((start, *drawn), key=problem.value), (f"the best of {ALLOCATIONS} draws",)
