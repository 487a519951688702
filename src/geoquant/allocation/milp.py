"""The exact solver: what is the best selection for the problem's own objective?

The sum is a multiple-choice knapsack (`exact`), the worst a bisection (`worst`), a function of the damages
a branch and bound (`monotone`).
"""

from __future__ import annotations

import time

from geoquant.allocation.exact import least_sum
from geoquant.allocation.monotone import least_function
from geoquant.allocation.problem import Problem
from geoquant.allocation.protocol import SOLVERS
from geoquant.allocation.solution import Solution
from geoquant.allocation.worst import least_worst


@SOLVERS.add("milp")
def milp(problem: Problem) -> Solution:
    """Solve `problem` to proven optimality, or as near as the limits of its parts allow (see `Solution.gap`).

    Raises:
        BudgetError: nothing fits.
        PlanError: an objective function falls when a damage rises.

    >>> from geoquant.allocation import Cost
    >>> bits = Cost("bits", [[1, 2, 3]] * 3, 6)
    >>> problem = Problem([[9.0, 3.0, 1.0], [4.0, 2.0, 1.0], [1.0, 0.5, 0.2]], (bits,))
    >>> milp(problem).selection.tolist()
    [2, 1, 0]
    """
    started = time.perf_counter()
    if problem.objective == "sum":
        merged = problem.merged()
        answer = least_sum(merged.problem)
        selection = merged.expand(answer.selection)
    else:
        answer = least_worst(problem) if problem.objective == "worst" else least_function(problem)
        selection = answer.selection
    return Solution.of(problem, selection, answer.bound, "milp", started, answer.notes)
