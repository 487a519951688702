"""Which choices can still be part of a better selection?

With an incumbent of value z and a dual bound L, a choice whose reduced cost exceeds z - L cannot occur in
any selection better than the incumbent. At the sizes of neural networks this settles nearly every site; the
few that stay open are the core (Balas and Zemel 1980), and only the core needs a search.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from geoquant.allocation.instance import Instance, normalized
from geoquant.allocation.lagrangian import Relaxation
from geoquant.allocation.problem import IntArray
from geoquant.arrays import Floats


@dataclass(frozen=True, eq=False)
class Core:
    """The open sites as an instance of their own.

    Attributes:
        instance: the smaller knapsack.
        sites: (p,) which sites of the larger one stand in it.
        fixed: (n,) the choice of every settled site; whatever elsewhere.
    """

    instance: Instance
    sites: IntArray
    fixed: IntArray

    def expand(self, selection: IntArray) -> IntArray:
        """Return the selection of the larger instance that `selection` (p,) stands for."""
        full = np.array(self.fixed)
        full[self.sites] = selection
        return full

    def offset(self, damage: Floats) -> list[float]:
        """Return the damages (of the larger instance) that are settled."""
        settled = np.ones(len(damage), bool)
        settled[self.sites] = False
        rows = np.flatnonzero(settled)
        return [float(value) for value in damage[rows, self.fixed[rows]]]


def core_of(instance: Instance, relaxed: Relaxation, value: float) -> Core | None:
    """Return the core for an incumbent worth `value`, or None when nothing can be better."""
    damage = np.where(relaxed.reduced > value - relaxed.bound, np.inf, instance.damage)
    count = np.isfinite(damage).sum(axis=1)
    if (count == 0).any():
        return None
    fixed = np.isfinite(damage).argmax(axis=1)
    sites = np.flatnonzero(count > 1)
    settled = np.flatnonzero(count == 1)
    capacity = instance.capacity - instance.cost[:, settled, fixed[settled]].sum(axis=1)
    smaller = normalized(damage[sites], instance.cost[:, sites], capacity)
    return None if smaller is None else Core(smaller, sites, fixed)


def rest_of(values: list[float], settled: list[float]) -> float:
    """Return sum(values) - sum(settled), rounded once.

    >>> rest_of([1e16, 1.0], [1e16])
    1.0
    """
    return math.fsum([*values, *(-value for value in settled)])
