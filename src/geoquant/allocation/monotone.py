"""How good can a user's own function of the damages be made?

The function f is a black box with one promise: it does not fall when a damage rises. That is enough for a
proof. Whatever the feasible selection, each site's damage is at least the smallest one it could afford if
all other sites took their cheapest choice, so f of those damages is a lower bound; fixing sites one after
the other tightens it (branch and bound, most promising first). Good selections come from the best sum and the
best worst damage, then from f linearised around the current selection, which is exact when f is a sum of
functions of single damages.

The answer stops where the evaluations do: small problems are solved exactly, large ones get an honest gap.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from geoquant.allocation.exact import Proven, least_sum
from geoquant.allocation.problem import BoolArray, IntArray, Merged, Problem
from geoquant.allocation.worst import least_worst
from geoquant.arrays import Floats
from geoquant.errors import PlanError

EVALUATIONS = 4_000
PAIRS = 300
DESCENTS = 25


def check_monotone(function: Callable[[Floats], float], damage: Floats, samples: int = 64) -> None:
    """Raise `PlanError` when sampled increases of damages make `function` fall; finding none proves nothing.

    Args:
        function: takes damages (n_sites,), returns a number.
        damage: (n_sites, n_choices) from which damages are drawn; infinite ones are left out.
        samples: number of comparisons.

    >>> check_monotone(lambda d: float((d**2).sum()), np.array([[1.0, 2.0], [0.0, 3.0]]))
    >>> check_monotone(lambda d: float(-d.sum()), np.array([[1.0, 2.0], [0.0, 3.0]]))
    Traceback (most recent call last):
    ...
    geoquant.errors.PlanError: the objective falls from -1 to -2 when damages rise; ...
    """
    draw = np.random.default_rng(0)
    finite = np.isfinite(damage)
    keys = np.where(finite, 0.0, -1.0)
    rows = np.arange(len(damage))
    for _ in range(samples):
        picks = [(keys + finite * draw.random(damage.shape)).argmax(axis=1) for _ in range(2)]
        low, other = (damage[rows, pick] for pick in picks)
        high = np.where(draw.random(len(rows)) < draw.random(), np.maximum(low, other), low)
        before, after = float(function(low)), float(function(high))
        if after < before - 1e-9 * max(abs(before), abs(after)):
            raise PlanError(
                f"the objective falls from {before:g} to {after:g} when damages rise; "
                "no bound can be proven for it: use a function that never falls when a damage rises"
            )


def least_function(problem: Problem, evaluations: int = EVALUATIONS) -> Proven:
    """Minimise the problem's own objective function.

    Args:
        problem: with a callable objective; groups allowed.
        evaluations: how often branch and bound may call the function (the descent before it has its own,
            fixed limits).

    Raises:
        BudgetError: nothing fits.
        PlanError: the function was caught falling when a damage rose, or gave NaN.

    >>> from geoquant.allocation import Cost
    >>> bits = Cost("bits", [[0, 2], [0, 2]], 3)
    >>> answer = least_function(Problem([[4.0, 0.0], [3.0, 0.0]], (bits,), objective=lambda d: float((d**2).sum())))
    >>> answer.selection.tolist(), answer.bound
    ([1, 0], 9.0)
    """
    assert callable(problem.objective)
    check_monotone(problem.objective, problem.damage)
    merged = problem.merged("sum")
    starts = [merged.expand(least_sum(merged.problem).selection), least_worst(problem).selection]
    best = min((_descend(problem, merged, start) for start in starts), key=problem.value)
    search = _Search(problem, merged, best, problem.value(best), evaluations)
    search.run()
    how = "optimal: branch and bound finished" if search.finished else "bound from an unfinished branch and bound"
    return Proven(search.selection, search.bound, (f"{how} after {search.used} evaluations",))


def function_bound(problem: Problem) -> float:
    """Return f of each site's smallest damage that is affordable when all others are cheapest."""
    merged = problem.merged("sum")
    afford = _Affordable.of(merged)
    return problem.value_of(afford.least_damages(problem, (), afford.room))


def _descend(problem: Problem, merged: Merged, selection: IntArray) -> IntArray:
    """Move while the linearised function, a single change or a likely pair of changes improves the true one."""
    value = problem.value(selection)
    for _ in range(DESCENTS):
        if not math.isfinite(value):
            break
        change = _changes(problem, merged, selection, value)
        for candidate in _candidates(merged, change, selection):
            trial = problem.value(candidate)
            if trial < value:
                selection, value = candidate, trial
                break
        else:
            break
    return selection


def _changes(problem: Problem, merged: Merged, selection: IntArray, value: float) -> Floats:
    """Return (blocks, choices): how much f changes when one block alone takes another choice."""
    current = problem.damages(selection)
    change = np.full(merged.problem.damage.shape, np.inf)
    sites_of = merged.members
    for block, choice in zip(*np.nonzero(merged.problem.mask), strict=True):
        members = sites_of[block]
        if (selection[members] == choice).all():
            change[block, choice] = 0.0
            continue
        damages = current.copy()
        damages[members] = problem.damage[members, choice]
        change[block, choice] = problem.value_of(damages) - value
    return change


def _candidates(merged: Merged, change: Floats, selection: IntArray) -> Iterator[IntArray]:
    """Yield feasible selections: the linearised optimum, the best single change, then pairs of changes."""
    blocks = merged.problem
    first = np.unique(merged.block_of, return_index=True)[1]
    current = selection[first]
    linear = replace(blocks, damage=change, objective="sum")
    yield merged.expand(least_sum(linear, known=current).selection)
    rows = np.arange(len(current))
    extra = blocks.cost_tables - blocks.cost_tables[:, rows, current][:, :, None]
    left = blocks.limits - blocks.cost_tables[:, rows, current].sum(axis=1)
    block, choice = np.nonzero(np.isfinite(change) & (np.arange(change.shape[1]) != current[:, None]))
    order = np.argsort(change[block, choice], kind="stable")[:PAIRS]
    block, choice = block[order], choice[order]
    gains, extras = change[block, choice], extra[:, block, choice]
    for move in np.flatnonzero((extras <= left[:, None]).all(axis=0) & (gains < 0))[:1]:
        yield merged.expand(_moved(current, block[[move]], choice[[move]]))
    fits = (extras[:, :, None] + extras[:, None, :] <= left[:, None, None]).all(axis=0)
    fits &= block[:, None] < block[None, :]
    pairs = np.argwhere(fits)
    likely = np.argsort(gains[pairs].sum(axis=1), kind="stable")[:PAIRS]
    for pair in pairs[likely]:
        yield merged.expand(_moved(current, block[pair], choice[pair]))


def _moved(selection: IntArray, blocks: IntArray, choices: IntArray) -> IntArray:
    selection = selection.copy()
    selection[blocks] = choices
    return selection


@dataclass(frozen=True, eq=False)
class _Affordable:
    """Costs beyond the cheapest: `extra` (m, blocks, choices) and what is left for them: `room` (m,)."""

    merged: Merged
    extra: IntArray
    room: IntArray

    @staticmethod
    def of(merged: Merged) -> _Affordable:
        blocks = merged.problem
        largest = np.iinfo(np.int64).max
        floor = np.where(blocks.mask, blocks.cost_tables, largest).min(axis=2, initial=largest)
        return _Affordable(merged, blocks.cost_tables - floor[:, :, None], blocks.limits - floor.sum(axis=1))

    def choices(self, room: IntArray) -> BoolArray:
        return (self.extra <= room[:, None, None]).all(axis=0) & self.merged.problem.mask

    def least_damages(self, problem: Problem, prefix: tuple[tuple[int, int], ...], room: IntArray) -> Floats:
        """Return per site the least damage it can have, given the (block, choice) pairs of `prefix`.

        Infinite where the room is too small for every choice.
        """
        possible = self.choices(room)
        for block, choice in prefix:
            possible[block] = np.arange(possible.shape[1]) == choice
        least = np.where(possible[self.merged.block_of], problem.damage, np.inf).min(axis=1)
        return np.asarray(least, np.float64)


@dataclass
class _Search:
    """Branch and bound over blocks, the node with the least bound first."""

    problem: Problem
    merged: Merged
    selection: IntArray
    value: float
    evaluations: int
    used: int = 0
    bound: float = -math.inf
    finished: bool = False
    _tie: Iterator[int] = field(default_factory=itertools.count)

    def run(self) -> None:
        """Search until nothing open is better than the incumbent, or the evaluations are used up."""
        afford = _Affordable.of(self.merged)
        order = np.argsort(-np.ptp(np.where(self.merged.problem.mask, self.merged.problem.damage, 0), axis=1))
        root = self.problem.value_of(afford.least_damages(self.problem, (), afford.room))
        heap: list[tuple[float, int, int, tuple[tuple[int, int], ...], IntArray]] = [(root, 0, 0, (), afford.room)]
        while heap and heap[0][0] < self.value and self.used < self.evaluations:
            _, _, _, prefix, room = heapq.heappop(heap)
            block = int(order[len(prefix)])
            for choice in np.flatnonzero(afford.choices(room)[block]):
                child, left = (*prefix, (block, int(choice))), room - afford.extra[:, block, choice]
                self.used += 1
                least = afford.least_damages(self.problem, child, left)
                bound = self.problem.value_of(least) if np.isfinite(least).all() else math.inf
                if bound >= self.value:
                    continue
                if len(child) == len(order):
                    self.selection, self.value = self._selection(child), bound
                else:
                    heapq.heappush(heap, (bound, -len(child), next(self._tie), child, left))
        self.finished = not heap or heap[0][0] >= self.value
        self.bound = self.value if self.finished else heap[0][0]

    def _selection(self, prefix: tuple[tuple[int, int], ...]) -> IntArray:
        choices = dict(prefix)
        return self.merged.expand(np.array([choices[block] for block in range(len(choices))]))
