"""Laws of every allocation solver; a newcomer registers its own and inherits them all.

Feasibility is judged here with Python integers, not with the library's own arithmetic.
"""

from __future__ import annotations

import math

import numpy as np

from geoquant.allocation import Problem, Solution, Solver, solve
from geoquant.errors import BudgetError


def obeys(problem: Problem, selection: np.ndarray) -> bool:
    """Say whether a selection is allowed, fused where it must be, and within every limit."""
    columns = [int(choice) for choice in selection]
    return (
        len(columns) == problem.n_sites
        and all(problem.mask[site, choice] for site, choice in enumerate(columns))
        and all(columns[site] == columns[group[0]] for group in problem.groups for site in group)
        and all(
            sum(int(cost.table[site, choice]) for site, choice in enumerate(columns)) <= cost.limit
            for cost in problem.costs
        )
    )


def rounding_of(problem: Problem, selection: np.ndarray) -> float:
    """By how much float64 may be off on this selection, as `Solution.lower_bound` states."""
    return 1e-12 * max(1e-300, float(np.abs(problem.damages(selection)).sum()))


def check_solver(solver: Solver, problem: Problem, best: float | None = None) -> Solution | None:
    """Hold `solver` to the laws on one problem; `best` is its true optimum if known (infinite: nothing fits).

    Returns the solution, or None when the solver found that nothing fits.
    """
    try:
        solution = solver(problem)
    except BudgetError as error:
        _check_refusal(problem, str(error), best)
        return None
    assert best is None or not math.isinf(best), "found a selection where there is none"
    assert obeys(problem, solution.selection), "the selection breaks a limit, a group or a prohibition"
    assert not solution.selection.flags.writeable
    assert solution.objective == problem.value(solution.selection), "the objective is not that of the selection"
    assert solution.costs == tuple(int(cost.total(solution.selection)) for cost in problem.costs)
    assert solution.gap >= 0
    assert solution.lower_bound <= solution.objective
    if best is not None:
        slack = rounding_of(problem, solution.selection)
        assert solution.lower_bound <= best + slack, f"the bound is no bound: {solution.lower_bound} > {best}"
        assert solution.objective >= best - slack
    return solution


def check_against_exact(solution: Solution, problem: Problem) -> None:
    """No bound is above what another solver reached: this one's and the exact solver's against each other."""
    exact = solve(problem)
    slack = rounding_of(problem, solution.selection) + rounding_of(problem, exact.selection)
    assert solution.lower_bound <= exact.objective + slack
    assert exact.lower_bound <= solution.objective + slack


def _check_refusal(problem: Problem, message: str, best: float | None) -> None:
    short = _too_small(problem)
    assert best is None or math.isinf(best), f"refused a problem that has a solution: {message}"
    assert all(cost.name in message for cost in short), "the message must name the budgets that are too small"
    assert short or len(problem.costs) > 1, "a single budget fails only when the smallest plan exceeds it"


def check_repeatable(solver: Solver, problem: Problem) -> None:
    """The same problem gives the same solution, and stays as it was."""
    before = [problem.damage.copy(), *(cost.table.copy() for cost in problem.costs)]
    assert solver(problem) == solver(problem)
    after = [problem.damage, *(cost.table for cost in problem.costs)]
    assert all(np.array_equal(old, new) for old, new in zip(before, after, strict=True))


def _too_small(problem: Problem) -> list:
    """Budgets below the sum of the cheapest allowed choices, groups taken together."""
    leaders = {site: group for group in problem.groups for site in group}
    units = {leaders.get(site, (site,)) for site in range(problem.n_sites)}

    def least(cost) -> int:
        total = 0
        for unit in units:
            allowed = np.flatnonzero(problem.mask[list(unit)].all(axis=0))
            total += min(sum(int(cost.table[site, choice]) for site in unit) for choice in allowed)
        return total

    return [cost for cost in problem.costs if least(cost) > cost.limit]
