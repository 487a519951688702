"""A shelf of allocation problems, random and crafted, and the slow oracle that solves the small ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np

from geoquant.allocation import Cost, Problem

FUNCTIONS = {
    "sum": "sum",
    "worst": "worst",
    "squares": lambda d: float((np.maximum(d, 0) ** 2).sum()),
    "sum and worst": lambda d: float(d.sum() + 3 * d.max()),
}


def enumerate_selections(problem: Problem) -> Iterator[np.ndarray]:
    """Every feasible selection, groups and all, by sheer counting."""
    for selection in itertools.product(*(np.flatnonzero(row) for row in problem.mask)):
        candidate = np.array(selection)
        if problem.fits(candidate):
            yield candidate


def best_value(problem: Problem) -> float:
    """The true optimum of a small problem, infinite when nothing fits."""
    return min((problem.value(selection) for selection in enumerate_selections(problem)), default=math.inf)


def random_problem(
    draw: np.random.Generator, sites: int, choices: int, budgets: int = 1, objective: str = "sum", room: float = 0.5
) -> Problem:
    """A problem with everything that can go wrong: ties, twelve decades, noise, forbidden choices, fused groups."""
    damage = _damages(draw, sites, choices)
    widths = np.sort(draw.choice(np.arange(1, 17), choices, replace=False))
    weights = draw.choice([1, 7, 64, 1000, 4096], sites) if draw.random() < 0.5 else draw.integers(1, 10**6, sites)
    allowed = draw.random((sites, choices)) < 0.85
    allowed[np.arange(sites), draw.integers(0, choices, sites)] = True
    groups = _groups(draw, sites) if sites > 2 and draw.random() < 0.3 else ()
    for group in groups:
        allowed[list(group)] |= allowed[group[0]]
    tables = [_cost_table(draw, weights, widths) for _ in range(budgets)]
    masked = [np.where(allowed, table, table.max()) for table in tables]
    limits = [
        int(low + draw.uniform(-0.02, 1) * room * (high - low))
        for low, high in ((int(table.min(axis=1).sum()), int(table.max(axis=1).sum())) for table in masked)
    ]
    costs = tuple(Cost(f"unit{i}", table, limit) for i, (table, limit) in enumerate(zip(tables, limits, strict=True)))
    return Problem(damage, costs, groups, weights, widths, FUNCTIONS[objective], allowed)


def _damages(draw: np.random.Generator, sites: int, choices: int) -> np.ndarray:
    kind = draw.integers(0, 4)
    if kind == 0:  # ties everywhere
        return draw.integers(0, 4, (sites, choices)).astype(float)
    if kind == 1:  # twelve decades, no order
        return 10 ** draw.uniform(-9, 3, (sites, choices))
    smooth = 10 ** draw.uniform(-5, 2, (sites, 1)) * 4.0 ** -np.arange(choices)
    if kind == 2:  # as measured: noise that may go below zero
        return smooth + draw.normal(0, 1e-4, (sites, choices))
    return smooth


def _cost_table(draw: np.random.Generator, weights: np.ndarray, widths: np.ndarray) -> np.ndarray:
    kind = draw.integers(0, 3)
    bits = weights[:, None] * widths[None, :]
    if kind == 0:
        return bits
    if kind == 1:  # with scales and zero points of another size each
        return bits + 16 * draw.integers(0, 50, (len(weights), 1)) + draw.integers(0, 9, bits.shape)
    return draw.integers(0, 10, bits.shape)  # a latency table: wider may be faster


def _groups(draw: np.random.Generator, sites: int) -> tuple[tuple[int, ...], ...]:
    shuffled = draw.permutation(sites).tolist()
    return (tuple(shuffled[:2]),) if sites < 5 else (tuple(shuffled[:2]), tuple(shuffled[2:5]))
