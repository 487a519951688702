"""Branch and bound by HiGHS (through scipy), given numbers that it can handle.

HiGHS works with absolute tolerances of 1e-6 to 1e-7, while damages range over twelve decades. So it is not
given damages: it is given reduced costs and the price of unused capacity, both divided by the duality gap
that is left. All coefficients of the objective then lie in [0, 1], the optimum is at most 1, and a
tolerance of 1e-6 means a millionth of the *remaining* gap. Whether a returned selection fits is the
caller's to check, in integers.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from scipy import optimize, sparse

from geoquant.allocation.instance import Instance
from geoquant.allocation.problem import FloatArray, IntArray

TOLERANCE = 1e-7
"""Of HiGHS's dual values: what a proven bound may be off by, per row, at most."""
LARGEST_COEFFICIENT = 1e5

_stdout_lock = threading.Lock()


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send what C code writes to standard output to standard error instead.

    HiGHS prints remarks of its own even when told to be silent, and a command that was asked for JSON must
    put nothing else on standard output.
    """
    with _stdout_lock:
        sys.stdout.flush()
        try:
            kept = os.dup(1)
        except OSError:  # no standard output at all
            yield
            return
        try:
            os.dup2(2, 1)
            yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)


@dataclass(frozen=True, eq=False)
class Branched:
    """What HiGHS found: a selection (n,) or None, and a bound on the scaled objective it proved.

    `infeasible` says that it proved that there is no selection at all.
    """

    selection: IntArray | None
    bound: float
    infeasible: bool


def branch(
    instance: Instance, reduced: FloatArray, prices: FloatArray, gap: float, relative_gap: float, nodes: int
) -> Branched:
    """Minimise (reduced cost + price of unused capacity) / gap over the selections that fit.

    Args:
        instance: the knapsack; choices whose reduced cost exceeds `gap` are expected to be gone.
        reduced: (n, k) reduced costs at `prices`.
        prices: (m,) damage per unit of cost.
        gap: what is left between incumbent and bound, in units of damage; positive.
        relative_gap: HiGHS stops when it has proven its selection this close to the best.
        nodes: limit of branch-and-bound nodes (a count, not seconds: results are reproducible).
    """
    site, choice = np.nonzero(instance.present)
    n, m, columns = len(instance.damage), len(instance.capacity), len(site)
    unit = np.maximum(instance.cost.max(axis=(1, 2), initial=1) / LARGEST_COEFFICIENT, 1.0)
    room = instance.capacity / unit
    with np.errstate(divide="ignore"):
        slack_limit = np.minimum(room, np.where(prices > 0, gap / (prices * unit), np.inf))
    takes_one = sparse.csr_array((np.ones(columns), (site, np.arange(columns))), shape=(n, columns + m))
    usage = sparse.hstack([sparse.csr_array(instance.cost[:, site, choice] / unit[:, None]), sparse.eye_array(m)])
    with stdout_to_stderr():
        answer = optimize.milp(
            np.concatenate([reduced[site, choice] / gap, prices * unit / gap]),
            integrality=np.concatenate([np.ones(columns), np.zeros(m)]),
            bounds=optimize.Bounds(np.zeros(columns + m), np.concatenate([np.ones(columns), slack_limit])),
            constraints=[
                optimize.LinearConstraint(takes_one, np.ones(n), np.ones(n)),
                optimize.LinearConstraint(usage.tocsr(), room, room),
            ],
            options={"mip_rel_gap": relative_gap, "node_limit": nodes},
        )
    bound = answer.get("mip_dual_bound")
    selection = None
    if answer.x is not None:
        share = np.full(instance.damage.shape, -1.0)
        share[site, choice] = answer.x[:columns]
        selection = share.argmax(axis=1)
    safe = TOLERANCE * (n + m + 1)
    return Branched(selection, (0.0 if bound is None else float(bound)) - safe, answer.status == 2)
