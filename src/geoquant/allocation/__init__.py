"""Which choice for which site: problems, solvers and their proofs.

A `Problem` is a table of damages (sites by choices) with integer budgets; a solver turns it into a
`Solution` with a proven lower bound. Everything here is numpy and scipy; nothing knows models or grids.

| solver | answer |
|-|-|
| `milp` | exact: multiple-choice knapsack for the sum, bisection for the worst, branch and bound for a function |
| `greedy` | best damage saved per cost, step by step |
| `proportional` | bits in proportion to log2 of the curvature |
| `gradient` | descent on fractional bits, rounded down, filled greedily |
| `uniform` | one width everywhere |
"""

from geoquant.allocation import gradient, greedy, milp, proportional, uniform
from geoquant.allocation.continuous import continuous_bits
from geoquant.allocation.feasibility import minimum_costs
from geoquant.allocation.monotone import check_monotone
from geoquant.allocation.problem import Cost, Merged, Objective, Problem
from geoquant.allocation.protocol import SOLVERS, Solver, lower_bound, solve, strategy
from geoquant.allocation.solution import Solution

_BUILT_IN = (gradient, greedy, milp, proportional, uniform)
"""A solver registers itself when its module is imported."""

__all__ = [
    "SOLVERS",
    "Cost",
    "Merged",
    "Objective",
    "Problem",
    "Solution",
    "Solver",
    "check_monotone",
    "continuous_bits",
    "lower_bound",
    "minimum_costs",
    "solve",
    "strategy",
]
