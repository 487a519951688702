"""Branch and bound by HiGHS (through scipy), given numbers that it can handle.

HiGHS works with absolute tolerances of 1e-6 to 1e-7, while damages range over twelve decades. So it is given
each choice's damage beyond the site's least, divided by the duality gap that is left: a tolerance of 1e-7
then means a ten-millionth of the *remaining* gap. Whether a returned selection fits is the caller's to
check, in integers.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from scipy import optimize, sparse

from geoquant.allocation.instance import Instance
from geoquant.allocation.problem import IntArray

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
    """What HiGHS found: a selection (n,) or None, and a lower bound on the sum of damages it proved.

    `infeasible` says that it proved that there is no selection at all.
    """

    selection: IntArray | None
    bound: float
    infeasible: bool


def branch(instance: Instance, gap: float, nodes: int, relative_gap: float = 0.0, settled: float = 0.0) -> Branched:
    """Minimise the sum of damages over the selections that fit.

    Args:
        instance: the knapsack.
        gap: what is left between incumbent and bound, in units of damage; positive. It sets the scale.
        nodes: limit of branch-and-bound nodes (a count, not seconds: results are reproducible).
        relative_gap: HiGHS stops when it has proven its selection this close to the best.
        settled: damage outside the instance, which `relative_gap` also refers to.
    """
    site, choice = np.nonzero(instance.present)
    n, m, columns = len(instance.damage), len(instance.capacity), len(site)
    least = instance.damage.min(axis=1)
    base = math.fsum(least)
    constant = (base + settled) / gap
    unit = np.maximum(instance.cost.max(axis=(1, 2), initial=1) / LARGEST_COEFFICIENT, 1.0)
    # one more column, fixed to 1, carries the constant: HiGHS takes its relative gap of the whole
    takes_one = sparse.csr_array((np.ones(columns), (site, np.arange(columns))), shape=(n, columns + 1))
    usage = sparse.hstack([instance.cost[:, site, choice] / unit[:, None], sparse.csr_array((m, 1))])
    with stdout_to_stderr():
        answer = optimize.milp(
            np.append((instance.damage - least[:, None])[site, choice] / gap, constant),
            integrality=np.append(np.ones(columns), 0),
            bounds=optimize.Bounds(np.append(np.zeros(columns), 1), np.ones(columns + 1)),
            constraints=[
                optimize.LinearConstraint(takes_one, np.ones(n), np.ones(n)),
                optimize.LinearConstraint(usage.tocsr(), -np.inf, instance.capacity / unit),
            ],
            options={"mip_rel_gap": relative_gap, "node_limit": nodes},
        )
    selection = None
    if answer.x is not None:
        share = np.full(instance.damage.shape, -1.0)
        share[site, choice] = answer.x[:columns]
        selection = share.argmax(axis=1)
    proven = answer.get("mip_dual_bound")
    scaled = 0.0 if proven is None else float(proven) - constant
    return Branched(selection, base + gap * (scaled - TOLERANCE * (n + m)), answer.status == 2)
