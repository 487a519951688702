"""What is every layer of a net like, and how many bits does it get? One table for all studies that ask.

Damage is the KL divergence from the float net with that layer alone rounded to nearest; the plan is the exact one for
these damages. Layers are in the order in which the model lists them, that of execution in the nets here; none are tied.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from torch import nn

from geoquant.geometry import condition_number, gauss_newton_traces, spectral_norm
from geoquant.models import find_sites, get_weight, take_inventory
from geoquant.plan import Budget, allocate, uniform_plan
from geoquant.sensitivity import profile

WIDTHS = tuple(range(2, 9))
ENOUGH = 0.01
"""A layer alone needs the least width from which on its damage stays below so many nats a prediction."""


def layer_facts(model: nn.Module, calibration: Sequence[Any], average: float, seed: int) -> list[dict[str, Any]]:
    """Return a row for every layer.

    Args:
        model: in eval mode.
        calibration: batches.
        average: of the plans: they are as large as the uniform grid of so many bits, scales included.
        seed: of random probes.
    """
    grids = [f"int{bits}:mse-signed" for bits in WIDTHS]
    names = ("one_layer_kl", "condition_number")
    measured = profile(model, calibration, grids=grids, predictors=names, seed=seed)
    inventory = take_inventory(model)
    sizes = [uniform_plan(inventory, grid).average_bits for grid in grids]
    budget = Budget(average_bits=float(np.interp(average, WIDTHS, sizes)))
    exact = allocate(measured, budget, predictor="one_layer_kl")
    guided = allocate(measured, budget, predictor="condition_number", solver="proportional")
    traces = gauss_newton_traces(model, calibration, find_sites(model), seed=seed, loss="kl")
    rows = []
    for place, site in enumerate(inventory.sites):
        matrix = site.matrix(get_weight(model, site))
        damage = measured.table("one_layer_kl").row(site.name)
        rows.append(
            {
                "layer": site.name,
                "depth": place / max(len(inventory.sites) - 1, 1),
                "weights": site.weights,
                "condition_number": condition_number(matrix).value,
                "spectral_norm": spectral_norm(matrix).value,
                "trace_per_weight": traces[site.name].value / site.weights,
                "bits_exact": exact.grid(site.name).bits,
                "bits_guided": guided.grid(site.name).bits,
                "bits_alone": least_width(damage),
                **{f"kl_{bits}": value for bits, value in zip(WIDTHS, damage, strict=True)},
            }
        )
    return rows


def least_width(damage: Sequence[float]) -> int:
    """Return the least width from which on no damage exceeds what is allowed; one above the widest if even that does.

    >>> least_width([1.0, 0.001, 0.02, 0.005, 0.0, 0.0, 0.0])
    5
    """
    wrong = [bits for bits, value in zip(WIDTHS, damage, strict=True) if value > ENOUGH]
    return wrong[-1] + 1 if wrong else WIDTHS[0]


def thirds(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[float, float, float]:
    """Return the mean of a column over the first, the middle and the last third of the layers.

    >>> thirds([{"bits": 4}, {"bits": 3}, {"bits": 2}], "bits")
    (4.0, 3.0, 2.0)
    """
    part = max(len(rows) // 3, 1)
    groups = rows[:part], rows[part:-part] or rows, rows[-part:]
    first, middle, last = (statistics.fmean(row[name] for row in group) for group in groups)
    return first, middle, last


def ends_over_middle(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Return the mean of a column at both ends over its mean between them; None where nothing is between.

    >>> ends_over_middle([{"bits": 8}, {"bits": 3}, {"bits": 4}], "bits")
    2.0
    """
    if len(rows) < 3:
        return None
    return statistics.fmean((rows[0][name], rows[-1][name])) / statistics.fmean(row[name] for row in rows[1:-1])


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Return Spearman's correlation; None where one side is constant or there are fewer than three pairs.

    >>> rank_correlation([1, 2, 3], [10, 20, 40]), rank_correlation([1, 2, 3], [1, 1, 1]) is None
    (1.0, True)
    """
    if len(x) < 3 or len(set(x)) < 2 or len(set(y)) < 2:
        return None
    return round(float(spearmanr(x, y).statistic), 12)
