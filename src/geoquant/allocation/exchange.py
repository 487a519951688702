"""Can one or two changes at once make a selection better, or make it fit?

Both verbs look at exact costs and true damages, so what they return is feasible (or said not to be) and never
worse. Pairs are tried among the changes that the prices of the relaxation call cheapest; for up to
`PAIRED` changes that is all of them.
"""

from __future__ import annotations

import numpy as np

from geoquant.allocation.instance import Instance
from geoquant.allocation.problem import IntArray
from geoquant.arrays import Floats

PAIRED = 384
ROUNDS = 200


def improve(instance: Instance, selection: IntArray, reduced: Floats) -> IntArray:
    """Return a selection that no single change and no tried pair of changes makes better.

    Args:
        instance: with `selection` (n,) feasible in it.
        selection: where to start.
        reduced: (n, k) reduced costs that rank the changes (see `lagrangian.Relaxation`).

    >>> from geoquant.allocation import Cost, Problem
    >>> instance = Instance.of(Problem([[4.0, 0.0], [3.0, 0.0]], (Cost("bits", [[0, 2], [0, 2]], 3),)))
    >>> improve(instance, np.array([0, 1]), np.zeros((2, 2))).tolist()
    [1, 0]
    """
    selection = np.array(selection)
    rows = np.arange(len(selection))
    for _ in range(ROUNDS):
        gain = instance.damage - instance.damage[rows, selection][:, None]
        extra = instance.cost - instance.cost[:, rows, selection][:, :, None]
        left = instance.capacity - instance.usage(selection)
        fits = (extra <= left[:, None, None]).all(axis=0)
        single = np.where(fits, gain, np.inf)
        best = np.unravel_index(single.argmin(), single.shape)
        if single[best] < 0:
            selection[best[0]] = best[1]
            continue
        pair = _best_pair(gain, extra, left, reduced - reduced[rows, selection][:, None])
        if pair is None:
            break
        for site, choice in pair:
            selection[site] = choice
    return selection


def _best_pair(
    gain: Floats, extra: IntArray, left: IntArray, rank: Floats
) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Return the two changes on different sites that together save most, or None when none saves."""
    site, choice = np.nonzero(np.isfinite(gain) & ((gain != 0) | (extra != 0).any(axis=0)))
    if len(site) > PAIRED:
        cheapest = np.argsort(rank[site, choice], kind="stable")[:PAIRED]
        site, choice = site[cheapest], choice[cheapest]
    gains, extras = gain[site, choice], extra[:, site, choice]
    # the first change saves damage, the second one makes room for it
    first = np.flatnonzero(gains < 0)
    both = gains[first, None] + gains[None, :]
    allowed = (both < 0) & (site[first, None] != site[None, :])
    for used, room in zip(extras, left, strict=True):
        allowed &= used[first, None] + used[None, :] <= room
    if not allowed.any():
        return None
    a, b = np.unravel_index(np.where(allowed, both, np.inf).argmin(), both.shape)
    a = first[a]
    return (int(site[a]), int(choice[a])), (int(site[b]), int(choice[b]))


def repair(instance: Instance, selection: IntArray, reduced: Floats) -> IntArray | None:
    """Return a feasible selection near `selection`, or None when this simple descent finds none.

    Each step takes the change that lowers the relative excess at the least reduced cost per unit of excess.
    """
    selection = np.array(selection)
    rows = np.arange(len(selection))
    unit = np.maximum(instance.capacity, 1)
    for _ in range(instance.damage.size):
        extra = instance.cost - instance.cost[:, rows, selection][:, :, None]
        over = instance.usage(selection) - instance.capacity
        excess = (np.maximum(over, 0) / unit).sum()
        if excess == 0:
            return selection
        after = (np.maximum(over[:, None, None] + extra, 0) / unit[:, None, None]).sum(axis=0)
        relief = np.where(instance.present, excess - after, 0)
        price = reduced - reduced[rows, selection][:, None]
        useful = relief > 0
        if not useful.any():
            return None
        ratio = np.where(useful, price / np.where(useful, relief, 1), np.inf)
        site, choice = np.unravel_index(ratio.argmin(), ratio.shape)
        selection[site] = choice
    return None
