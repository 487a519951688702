"""The same choice everywhere: the baseline that every plan has to beat.

Sites that do not allow the choice take their widest allowed one that is not wider, or else their narrowest.
Of the single choices that fit, the widest (by parameters) is taken; of equally wide ones, such as two grids of
the same bits, the one with the better objective.
"""

from __future__ import annotations

import numpy as np

from geoquant.allocation.problem import IntArray, Problem
from geoquant.allocation.protocol import strategy


def uniform_selection(problem: Problem, choice: int) -> IntArray:
    """Return `choice` wherever it is allowed, and the nearest allowed width elsewhere.

    >>> uniform_selection(Problem(np.zeros((2, 3))).fix(1, 0), 2).tolist()
    [2, 0]
    """
    width = problem.width_table
    wanted = width[:, [choice]]
    not_wider = problem.mask & (width <= wanted)
    below = np.where(not_wider, width, -np.inf).argmax(axis=1)
    above = np.where(problem.mask, width, np.inf).argmin(axis=1)
    nearest = np.where(not_wider.any(axis=1), below, above)
    return np.where(problem.mask[:, choice], choice, nearest)


@strategy("uniform")
def uniform(problem: Problem, start: IntArray) -> tuple[IntArray, tuple[str, ...]]:
    """Take the widest single choice that fits; see `geoquant.allocation.uniform`."""
    assert problem.weights is not None
    rows = np.arange(problem.n_sites)
    best, best_rank = None, (-np.inf, -np.inf)
    for choice in range(problem.n_choices):
        selection = uniform_selection(problem, choice)
        if problem.fits(selection):
            bits = float(problem.weights @ problem.width_table[rows, selection])
            rank = (bits, -problem.value(selection))
            if rank > best_rank:
                best, best_rank = selection, rank
    if best is None:
        return start, ("no single choice fits everywhere; this is the smallest plan",)
    return best, ()
