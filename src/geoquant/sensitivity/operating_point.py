"""Around which plan are marginal damages measured? A cheap plan at the budget, without a solver.

Damage at few bits is not additive: what a layer's bits are worth depends on what the others have. So it is measured
near the plan that will be used, and any sensible plan of the same budget is nearer than the float model.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from geoquant.arrays import Floats
from geoquant.sensitivity.protocol import Subject

BAND = 0.02
"""How far the average bits of a random plan may lie from the budget."""
STEPS = 1000
"""A random walk to the budget stops after so many steps per site."""


def stored_bits(subject: Subject) -> Floats:
    """Return the stored bits of every choice, scales and zero points included: (sites, grids)."""
    return np.array(
        [[grid.storage(site.matrix_shape).total_bits for grid in subject.grids] for site in subject.sites], float
    )


def thrifty_columns(subject: Subject, average_bits: float, damage: Floats | None = None) -> tuple[int, ...]:
    """Return a column per site with little total damage at no more than `average_bits`, where that can be met.

    Starts from the cheapest choices and takes the step of the steepest descent (damage per stored bit) that still fits,
    which is optimal on the convex hull up to the last step; a uniform plan stands in where it is better. The exact
    solvers of `geoquant.allocation` do better by what the last step leaves.

    Args:
        subject: sites and grids.
        average_bits: limit on stored bits over the weights of the subject's sites.
        damage: (sites, grids); the squared rounding errors when None.
    """
    cost = stored_bits(subject)
    score = subject.squared_errors if damage is None else damage
    rows, limit = np.arange(len(cost)), average_bits * sum(site.weights for site in subject.sites)
    uniform = [np.full(len(cost), column) for column in range(cost.shape[1])]
    fitting = [columns for columns in uniform if cost[rows, columns].sum() <= limit]
    best = min([_descended(cost, score, limit), *fitting], key=lambda columns: float(score[rows, columns].sum()))
    return tuple(int(column) for column in best)


def _descended(cost: Floats, score: Floats, limit: float) -> NDArray[np.intp]:
    """Start from the smallest choices and spend what is left of `limit` where it helps most per bit."""
    rows = np.arange(len(cost))
    # The choice of least storage, among equals that of least damage.
    chosen: NDArray[np.intp] = np.where(cost == cost.min(1, keepdims=True), score, np.inf).argmin(1)
    left = limit - cost[rows, chosen].sum()
    while True:
        extra = cost - cost[rows, chosen][:, None]
        gain = score[rows, chosen][:, None] - score
        slope = np.where((extra > 0) & (extra <= left) & (gain > 0), gain / np.where(extra > 0, extra, 1), -np.inf)
        row, column = divmod(int(slope.argmax()), slope.shape[1])
        if not np.isfinite(slope[row, column]):
            return chosen
        left -= extra[row, column]
        chosen[row] = column


def random_columns(
    cost: Floats, weights: int, average_bits: float, generator: np.random.Generator, band: float = BAND
) -> tuple[int, ...]:
    """Draw a column per site, then move random sites by one column until the average is within `band`.

    Args:
        cost: (sites, columns) stored bits, rising with the column.
        weights: over which is averaged.
        average_bits: what the plan should take.
        generator: of the draws.
        band: how far the average may lie from it; where no walk gets there, the last plan it came to is returned.

    >>> cost = np.outer([10.0, 30.0], [2.0, 4.0, 8.0])
    >>> random_columns(cost, 40, 4.0, np.random.default_rng(0))
    (1, 1)
    """
    rows = np.arange(len(cost))
    columns = generator.integers(0, cost.shape[1], len(cost))
    for _ in range(STEPS * len(cost)):
        average = cost[rows, columns].sum() / weights
        if abs(average - average_bits) <= band:
            break
        row = generator.integers(len(cost))
        columns[row] = np.clip(columns[row] + (1 if average < average_bits else -1), 0, cost.shape[1] - 1)
    return tuple(int(column) for column in columns)
