"""What is a solver, and how does one become known?

A solver is a callable from a `Problem` to a `Solution`. It never exceeds a limit, raises `BudgetError` when
nothing fits, gives the same answer every time, and its lower bound is proven. Packages add theirs to
`SOLVERS` or through the entry point group ``geoquant.allocation solver``; the laws are tested by
``tests/allocation/contract.py``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from geoquant.allocation.feasibility import cheapest
from geoquant.allocation.instance import Instance
from geoquant.allocation.lagrangian import relax
from geoquant.allocation.monotone import function_bound
from geoquant.allocation.problem import IntArray, Problem
from geoquant.allocation.solution import Solution
from geoquant.allocation.worst import worst_bound
from geoquant.errors import BudgetError
from geoquant.registry import Registry


class Solver(Protocol):
    """Chooses one column per site."""

    def __call__(self, problem: Problem) -> Solution:
        """Return a feasible solution with a proven bound; `BudgetError` when there is none."""
        ...


SOLVERS: Registry[Solver] = Registry("allocation solver")

Strategy = Callable[[Problem, IntArray], tuple[IntArray, tuple[str, ...]]]
"""From a problem without groups and its cheapest selection to a feasible selection and notes."""


def solve(problem: Problem, solver: str = "milp") -> Solution:
    """Solve `problem` with the registered `solver`.

    Raises:
        BudgetError: nothing fits the budgets.
        UnknownNameError: there is no such solver.

    >>> from geoquant.allocation import Cost
    >>> problem = Problem([[4.0, 1.0], [3.0, 2.0]], (Cost("bits", [[20, 40], [10, 30]], 50),))
    >>> solution = solve(problem)
    >>> solution.selection.tolist(), solution.objective, solution.gap, solution.costs
    ([1, 0], 4.0, 0.0, (50,))
    """
    return SOLVERS[solver](problem)


def lower_bound(problem: Problem) -> float:
    """Return a value that no feasible selection's objective can be below, without solving the problem.

    The sum: Lagrangian dual. The worst: exact for one budget. A function: see `monotone.function_bound`.

    >>> from geoquant.allocation import Cost
    >>> bits = Cost("bits", [[0, 2], [0, 2]], 3)
    >>> round(lower_bound(Problem([[4.0, 0.0], [3.0, 0.0]], (bits,))), 9)
    3.0
    """
    if problem.objective == "worst":
        return worst_bound(problem)
    if problem.objective != "sum":
        return function_bound(problem)
    instance = Instance.of(problem.merged().problem)
    if instance is None:
        raise BudgetError("nothing fits the budgets, so there is nothing to bound; see minimum_costs")
    return relax(instance).bound


def strategy(name: str) -> Callable[[Strategy], Solver]:
    """Register a heuristic under `name`: groups, feasibility, bound and clock are taken care of.

    The heuristic sees the sum of a fused group's damages (the worst one where the objective is the worst). A
    function of all damages is not shown to it; the solution is weighed by it all the same.
    """

    def register(choose: Strategy) -> Solver:
        def solver(problem: Problem) -> Solution:
            started = time.perf_counter()
            merged = problem.merged("sum" if callable(problem.objective) else None)
            selection, notes = choose(merged.problem, cheapest(merged.problem))
            return Solution.of(problem, merged.expand(selection), lower_bound(problem), name, started, notes)

        solver.__name__, solver.__doc__ = name, choose.__doc__
        SOLVERS.register(name, solver)
        return solver

    return register
