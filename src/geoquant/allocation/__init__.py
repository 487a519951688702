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
| `random_search` | the best of 100 random allocations |

`cheapest_within` swaps the roles: the least cost at which a sum of errors stays within a tolerance.
"""

from geoquant.allocation import gradient, greedy, milp, proportional, random_search, uniform
from geoquant.allocation.composed import Cheapest, cheapest_within, composed_errors
from geoquant.allocation.continuous import continuous_bits
from geoquant.allocation.feasibility import minimum_costs
from geoquant.allocation.monotone import check_monotone
from geoquant.allocation.problem import Cost, Merged, Objective, Problem
from geoquant.allocation.protocol import SOLVERS, Solver, lower_bound, solve, strategy
from geoquant.allocation.solution import Solution

_BUILT_IN = (gradient, greedy, milp, proportional, random_search, uniform)
"""A solver registers itself when its module is imported."""

__all__ = [
    "SOLVERS",
    "Cheapest",
    "Cost",
    "Merged",
    "Objective",
    "Problem",
    "Solution",
    "Solver",
    "cheapest_within",
    "check_monotone",
    "composed_errors",
    "continuous_bits",
    "lower_bound",
    "minimum_costs",
    "solve",
    "strategy",
]
