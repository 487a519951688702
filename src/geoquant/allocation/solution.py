"""What did a solver choose, and how far from the best can it be?

A solution carries its own proof: a lower bound that no feasible selection can beat. The bound is of the
stated objective and the stated damages; whether those damages are true is for the predictor to answer.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from geoquant.allocation.problem import IntArray, Problem, read_only, same_values


@dataclass(frozen=True, eq=False)
class Solution:
    """A feasible selection with its proof.

    Two solutions are equal when everything but the time is.

    Attributes:
        selection: (n_sites,) chosen column per site.
        objective: what it is worth, recomputed from the problem's own damages.
        lower_bound: proven: no feasible selection has a smaller objective, up to the rounding of float64 sums
            (selections that differ by less than 1e-12 of the damages involved count as equal).
        costs: exact total in each budget, in the problem's order.
        solver: name of the solver.
        notes: how it was found or proven, for people.
        seconds: wall time; not part of comparisons.
    """

    selection: IntArray
    objective: float
    lower_bound: float
    costs: tuple[int, ...]
    solver: str
    notes: tuple[str, ...] = ()
    seconds: float = field(default=0.0, compare=False)

    def __eq__(self, other: object) -> bool:
        return same_values(self, other)

    @property
    def gap(self) -> float:
        """(objective - lower bound) / |objective|: 0 when the selection is proven optimal.

        >>> Solution(np.array([0]), 2.0, 1.5, (), "greedy").gap
        0.25
        """
        return float((self.objective - self.lower_bound) / max(abs(self.objective), np.finfo(float).tiny))

    @staticmethod
    def of(
        problem: Problem,
        selection: IntArray,
        lower_bound: float,
        solver: str,
        started: float,
        notes: tuple[str, ...] = (),
    ) -> Solution:
        """Weigh `selection` on `problem`; `started` is the `time.perf_counter` reading when work began.

        >>> problem = Problem([[4.0, 1.0]])
        >>> Solution.of(problem, np.array([1]), 1.0, "by hand", time.perf_counter()).gap
        0.0
        """
        if not problem.fits(selection):  # a defect of a solver, never of the caller
            raise AssertionError(f"solver '{solver}' returned a selection that is not feasible")
        objective = problem.value(selection)
        return Solution(
            selection=read_only(np.asarray(selection, np.int64)),
            objective=objective,
            lower_bound=min(lower_bound, objective),
            costs=problem.totals(selection),
            solver=solver,
            notes=notes,
            seconds=time.perf_counter() - started,
        )
