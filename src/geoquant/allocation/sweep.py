"""What is the best selection of a core, exactly?

Dynamic programming over sites, largest first. A state is a partial selection, known by its exact cost and
its damage; it is dropped when another one costs and hurts no more (one budget), or when the best relaxed
completion of the remaining sites is no better than the incumbent (Dyer, Kayal and Walker 1984; Pisinger
1995). Memory is bounded: where more than `states` are left only the most promising go on, as a beam. Then the
answer is a candidate and no longer a proof, and says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from geoquant.allocation.instance import Instance
from geoquant.allocation.lagrangian import hull_segments, relax
from geoquant.allocation.problem import IntArray
from geoquant.arrays import Floats

Completion = Callable[[IntArray], Floats]


@dataclass(frozen=True, eq=False)
class Swept:
    """`selection` (n,) is better than the incumbent, or None; when `complete`, nothing else is better."""

    selection: IntArray | None
    complete: bool


def sweep(instance: Instance, incumbent: float, states: int) -> Swept:
    """Find the best selection worth less than `incumbent`, following at most `states` partial ones.

    >>> from geoquant.allocation import Cost, Problem
    >>> bits = Cost("bits", [[0, 2], [0, 2]], 3)
    >>> swept = sweep(Instance.of(Problem([[4.0, 0.0], [3.0, 0.0]], (bits,))), 4.0, states=10)
    >>> swept.selection.tolist(), swept.complete
    ([1, 0], True)
    """
    complete = True
    order = np.argsort(-instance.cost.max(axis=(0, 2), initial=0), kind="stable")
    left = instance.capacity[:, None]
    value = np.zeros(1)
    parents: list[tuple[IntArray, IntArray]] = []
    for site, completion in zip(order, _completions(instance, order), strict=True):
        choices = np.flatnonzero(instance.present[site])
        parent = np.repeat(np.arange(len(value)), len(choices))
        choice = np.tile(choices, len(value))
        new_left = left[:, parent] - instance.cost[:, site, choice]
        new_value = value[parent] + instance.damage[site, choice]
        keep = np.flatnonzero((new_left >= 0).all(axis=0))
        keep = keep[_undominated(new_left[:, keep], new_value[keep])]
        bound = new_value[keep] + completion(new_left[:, keep])
        keep, bound = keep[bound < incumbent], bound[bound < incumbent]
        if len(keep) > states:
            complete = False
            keep = np.sort(keep[np.argpartition(bound, states)[:states]])
        if not len(keep):
            return Swept(None, complete)
        left, value = new_left[:, keep], new_value[keep]
        parents.append((parent[keep], choice[keep]))
    return Swept(_trace(order, parents, int(value.argmin())), complete)


def _trace(order: IntArray, parents: list[tuple[IntArray, IntArray]], state: int) -> IntArray:
    selection = np.zeros(len(order), np.int64)
    for site, (parent, choice) in zip(order[::-1], parents[::-1], strict=True):
        selection[site] = choice[state]
        state = int(parent[state])
    return selection


def _undominated(left: IntArray, value: Floats) -> IntArray:
    """Return indices of states that no other one beats; with several budgets only exact ties are merged."""
    if not len(value):
        return np.zeros(0, np.int64)
    order = np.lexsort((value, *(-left)))
    if len(left) <= 1:
        earlier = np.minimum.accumulate(np.concatenate([[np.inf], value[order][:-1]]))
        return np.asarray(order[value[order] < earlier], np.int64)
    repeated = (left[:, order[1:]] == left[:, order[:-1]]).all(axis=0)
    return np.asarray(order[np.concatenate([[True], ~repeated])], np.int64)


def _completions(instance: Instance, order: IntArray) -> list[Completion]:
    """Return, per step, a function from room left (m, states) to the least damage of the sites still open."""
    if len(instance.capacity) == 1:
        return _completions_by_hulls(instance, order)
    relaxed = relax(instance)
    charged = (instance.damage + np.tensordot(relaxed.prices, instance.cost, axes=1)).min(axis=1)[order]
    rest = np.concatenate([np.cumsum(charged[::-1])[::-1], [0.0]])[1:]

    def completion(base: float) -> Completion:
        return lambda left: base - relaxed.prices @ left

    return [completion(base) for base in rest.tolist()]


def _completions_by_hulls(instance: Instance, order: IntArray) -> list[Completion]:
    """One budget: the relaxed optimum of the open sites is piecewise linear in the room left."""
    segments = hull_segments(instance)
    position = np.empty(len(order), np.int64)
    position[order] = np.arange(len(order))
    step = position[segments.site]
    start = np.where(instance.present & (instance.cost[0] == 0), instance.damage, np.inf).min(axis=1)[order]
    base = np.concatenate([np.cumsum(start[::-1])[::-1], [0.0]])[1:]

    def completion(done: int) -> Completion:
        open_ = step > done
        room = np.concatenate([[0], np.cumsum(segments.cost[open_])])
        damage = base[done] - np.concatenate([[0.0], np.cumsum(segments.saving[open_])])
        return lambda left: np.interp(left[0], room, damage)

    return [completion(done) for done in range(len(order))]
