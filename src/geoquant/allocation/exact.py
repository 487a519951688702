"""Which selection has the least sum of damages, and what proves it?

The multiple-choice knapsack, exactly. The linear relaxation, repair and exchange give a good incumbent;
reduced costs then leave a small core; dynamic programming settles the core with a proof in exact integer costs
and float64 damages. Where that is too wide (several tight budgets, mostly), HiGHS branches on the core and
its bound enters with its tolerances taken off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from geoquant.allocation import exchange, highs
from geoquant.allocation.core import Core, core_of, rest_of
from geoquant.allocation.feasibility import cheapest
from geoquant.allocation.instance import Instance
from geoquant.allocation.lagrangian import Relaxation, relax
from geoquant.allocation.problem import IntArray, Problem
from geoquant.allocation.sweep import sweep
from geoquant.arrays import Floats
from geoquant.errors import BudgetError

RELATIVE_GAP = 1e-6
TIED = 1e-13
"""Bound and selection this close, relatively, differ by rounding only."""
WIDE_CORE = 200
"""Cores of more sites than this are closed to `WIDE_GAP` only, where HiGHS has to do it."""
WIDE_GAP = 1e-4
BRANCHED_SITES = 3_000
"""Cores of more sites than this are not given to HiGHS: it would take minutes."""
NODES = 20_000
ROUNDS = 3
STATES = (100, 300, 3_000, 30_000)
WORK = 6_000_000
"""Sites times states that a dynamic programme may visit: about a second."""


@dataclass(frozen=True, eq=False)
class Proven:
    """A feasible selection (n,), a lower bound of the objective, and how they came about."""

    selection: IntArray
    bound: float
    notes: tuple[str, ...] = ()


@dataclass
class _State:
    """The best selection and the best bound so far."""

    damage: Floats
    selection: IntArray
    bound: float

    def __post_init__(self) -> None:
        self.value = math.fsum(self.chosen)

    @property
    def chosen(self) -> list[float]:
        rows = np.arange(len(self.damage))
        return [float(value) for value in self.damage[rows, self.selection]]

    def offer(self, selection: IntArray) -> None:
        other = _State(self.damage, selection, self.bound)
        if other.value < self.value:
            self.selection, self.value = selection, other.value

    def close(self) -> None:
        """Nothing better exists."""
        self.bound = self.value

    def within(self, relative_gap: float) -> bool:
        return self.value - self.bound <= relative_gap * abs(self.value)


def least_sum(problem: Problem, relative_gap: float = RELATIVE_GAP, known: IntArray | None = None) -> Proven:
    """Minimise the sum of damages of a problem without groups.

    With one budget the result is optimal (at sizes met in practice). With several, HiGHS may have to close
    the gap; it then aims at `relative_gap`, or at `WIDE_GAP` where the core is wide. The bound is always a proof.

    Args:
        problem: its own objective is not looked at.
        relative_gap: what HiGHS aims at.
        known: (n,) a feasible selection, if one is at hand; the result is at least as good.

    Raises:
        BudgetError: nothing fits.

    >>> from geoquant.allocation import Cost
    >>> problem = Problem([[4.0, 0.0], [3.0, 0.0]], (Cost("bits", [[0, 2], [0, 2]], 3),))
    >>> answer = least_sum(problem)
    >>> answer.selection.tolist(), answer.bound
    ([1, 0], 3.0)
    """
    instance = Instance.of(problem)
    if instance is None:
        cheapest(problem)  # says which budget is too small, and what the smallest is
        raise BudgetError("no plan fits all budgets at once; raise one of them")
    relaxed = relax(instance)
    start = exchange.repair(instance, relaxed.selection, relaxed.reduced)
    if start is None:
        known = cheapest(problem) if known is None else known  # says so when nothing fits
        start = _undominated(problem, instance, known)
    state = _State(instance.damage, exchange.improve(instance, start, relaxed.reduced), relaxed.bound)
    if known is not None:
        state.offer(_undominated(problem, instance, known))
    notes = _close(instance, relaxed, state, relative_gap)
    return Proven(state.selection, min(state.bound, state.value), notes)


def _undominated(problem: Problem, instance: Instance, selection: IntArray) -> IntArray:
    """Replace choices that the normal form dropped by one that is no worse and no dearer."""
    rows = np.arange(len(selection))
    no_dearer = (problem.cost_tables <= problem.cost_tables[:, rows, selection][:, :, None]).all(axis=0)
    better = np.where(instance.present & no_dearer, instance.damage, np.inf).argmin(axis=1)
    return np.where(instance.present[rows, selection], selection, better)


def _close(instance: Instance, relaxed: Relaxation, state: _State, relative_gap: float) -> tuple[str, ...]:
    """Search cores until the gap is closed; return a note on what closed it."""
    size = len(instance.damage) + 1
    for _ in range(ROUNDS):
        note = _sweeps(instance, relaxed, state)
        if note is not None:
            return (note,)
        core = core_of(instance, relaxed, state.value)
        if core is None:
            state.close()
            return ("optimal: no choice outside has a reduced cost below the gap",)
        if len(core.sites) >= size:  # another round would search the same core again
            break
        size = len(core.sites)
        aim = relative_gap if size <= WIDE_CORE else max(relative_gap, WIDE_GAP)
        if state.within(aim) or size > BRANCHED_SITES:
            return (f"the bound is the Lagrangian one; a core of {size} sites stays open",)
        _branch(core, state, aim)
        if state.within(aim):
            break
    return (f"the bound is HiGHS's, over a core of {size} sites",)


def _sweeps(instance: Instance, relaxed: Relaxation, state: _State) -> str | None:
    """Run ever wider dynamic programmes on ever smaller cores; return a note when the optimum is proven."""
    several = len(instance.capacity) > 1
    for states in STATES[2:3] if several else STATES:
        core = core_of(instance, relaxed, state.value)
        if core is None:
            state.close()
            return "optimal: no choice outside has a reduced cost below the gap"
        if state.within(TIED):
            state.close()
            return "optimal: the bound meets the selection within rounding"
        if len(core.sites) * states > WORK:
            return None
        swept = sweep(core.instance, rest_of(state.chosen, core.offset(instance.damage)), states)
        if swept.selection is not None:
            state.offer(core.expand(swept.selection))
        if swept.complete:
            state.close()
            return f"optimal: dynamic programming over a core of {len(core.sites)} sites"
    return None


def _branch(core: Core, state: _State, relative_gap: float) -> None:
    """Let HiGHS search the core; take its selection if it fits, and its bound less its tolerances."""
    inner = relax(core.instance)
    settled = core.offset(state.damage)
    gap = rest_of(state.chosen, settled) - inner.bound
    if gap <= 0:
        state.close()
        return
    answer = highs.branch(core.instance, gap, NODES, relative_gap, math.fsum(settled))
    if answer.infeasible:  # numerically lost: the incumbent itself lies in the core
        return
    bound = math.fsum([*settled, max(answer.bound, inner.bound)])
    found = None
    if answer.selection is not None:
        found = exchange.repair(core.instance, answer.selection, inner.reduced)
    if found is not None:
        state.offer(core.expand(exchange.improve(core.instance, found, inner.reduced)))
    state.bound = max(state.bound, min(bound, state.value))
