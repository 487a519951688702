"""The swapped problem: least cost within a composed error, against every selection there is."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from geoquant.allocation import cheapest_within, composed_errors
from geoquant.allocation.composed import fractional_widths
from geoquant.errors import BudgetError, PlanError

METHODS = ("exact", "gradient")


def everything(error: np.ndarray, cost: np.ndarray, tolerance: float, groups: tuple = ()) -> float:
    """The true optimum by sheer counting; infinite when nothing fits."""
    rows, best = np.arange(len(error)), math.inf
    for chosen in itertools.product(range(error.shape[1]), repeat=len(error)):
        alike = all(len({chosen[site] for site in group}) == 1 for group in groups)
        if alike and math.fsum(error[rows, list(chosen)]) <= tolerance:
            best = min(best, float(cost[rows, list(chosen)].sum()))
    return best


@pytest.mark.parametrize("method", METHODS)
def test_never_beyond_the_tolerance_and_never_below_the_bound(method: str) -> None:
    optimal, feasible = 0, 0
    for number in range(150):
        draw = np.random.default_rng([5, number])
        sites, widths = int(draw.integers(1, 5)), np.array([2, 3, 4, 8])[: int(draw.integers(1, 5))]
        error = 10 ** draw.uniform(-4, 2, (sites, 1)) * 2.0**-widths * draw.uniform(0.5, 1.5, (sites, len(widths)))
        cost = draw.integers(1, 1000, (sites, 1)) * widths
        groups = ((0, 1),) if sites > 2 and draw.random() < 0.4 else ()
        tolerance = float(error.min(1).sum() + draw.uniform(-0.1, 1) * (error.max(1) - error.min(1)).sum() + 1e-9)
        if tolerance <= 0:
            continue
        best = everything(error, cost, tolerance, groups)
        options = {"method": method, "widths": widths, "groups": groups}
        if math.isinf(best):
            with pytest.raises(BudgetError, match="out of reach: the most exact"):
                cheapest_within(error, cost, tolerance, **options)
            continue
        found = cheapest_within(error, cost, tolerance, **options)
        assert found.error <= tolerance
        assert found.lower_bound <= best + 1e-9 <= found.cost + 2e-9
        assert found.cost == cost[np.arange(sites), found.selection].sum()
        feasible, optimal = feasible + 1, optimal + (found.cost == best)
    assert feasible > 100
    assert optimal == feasible if method == "exact" else 0.4 * feasible < optimal < feasible


def test_the_composition_is_attained_by_a_scalar_chain_of_one_sign() -> None:
    """Of x → aₙ(…a₁x + δ₁…) + δₙ: the error at the end is exactly the composed one; misaligned signs stay below."""
    draw = np.random.default_rng(0)
    stretch, local = draw.uniform(0.5, 2, 6), draw.uniform(0, 1, 6)

    def end(displacements: np.ndarray) -> float:
        x = 0.0
        for factor, moved in zip(stretch, displacements, strict=True):
            x = factor * x + moved
        return abs(x)

    bound = composed_errors(local[:, None], stretch).sum()
    assert end(local) == pytest.approx(bound)
    assert end(local * np.array([1, -1, 1, -1, 1, -1])) < 0.9 * bound


def test_fractional_widths_have_the_closed_form() -> None:
    """At the optimum each site's share of the error is its share of price over slope: b = log2(κ ΣF / F)."""
    draw = np.random.default_rng(1)
    kappa, price, wide = draw.uniform(1, 100, 8), 10 ** draw.uniform(0, 5, 8), np.full(8, 60.0)
    found = fractional_widths(np.log2(kappa), np.ones(8), price, -wide, wide)
    assert found == pytest.approx(np.log2(kappa * price.sum() / price), abs=1e-3)


def test_least_widths_are_a_mask() -> None:
    widths = np.array([2, 4, 8])
    error, cost = np.array([[1.0], [1.0]]) * 2.0**-widths, np.array([[10], [10]]) * widths
    free = cheapest_within(error, cost, 1.0, widths=widths)
    kept = cheapest_within(error, cost, 1.0, widths=widths, allowed=np.array([[True] * 3, [False, True, True]]))
    assert (free.selection.tolist(), kept.selection.tolist()) == ([0, 0], [0, 1])


def test_nonsense_is_refused() -> None:
    with pytest.raises(PlanError, match="tolerance"):
        cheapest_within([[1.0]], [[1]], 0.0)
    with pytest.raises(PlanError, match="0 or more"):
        cheapest_within([[-1.0]], [[1]], 1.0)
    with pytest.raises(PlanError, match="whole"):
        cheapest_within([[1.0]], [[1.5]], 1.0)
    with pytest.raises(PlanError, match="method"):
        cheapest_within([[1.0]], [[1]], 1.0, method="simplex")  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="constant"):
        composed_errors([[1.0]], [1.0, 2.0])
