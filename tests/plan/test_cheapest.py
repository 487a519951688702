"""The cheapest plan within a damage: the best of all plans there are, by both methods within the tolerance."""

from __future__ import annotations

import itertools
from typing import Literal

import pytest

import geoquant as gq
from geoquant.errors import BudgetError, PlanError
from geoquant.plan import LatencyTable, Plan, allocate_cheapest
from geoquant.sensitivity import Profile
from nets import small_batches, small_net

GRIDS = ("int2", "int3", "int4", "int8")


@pytest.fixture(scope="module")
def measured() -> Profile:
    return gq.profile(small_net(), small_batches(), grids=GRIDS, predictors=["one_layer_kl", "caq"])


def damage_of(measured: Profile, predictor: str, plan: Plan) -> float:
    table = measured.table(predictor)
    pairs = zip(plan.inventory.names, plan.names, strict=True)
    return sum(max(table.row(site)[table.grids.index(grid)], 0) for site, grid in pairs)


@pytest.mark.parametrize("unit", ["bit_operations", "average_bits", "latency"])
@pytest.mark.parametrize("predictor", ["one_layer_kl", "caq"])
@pytest.mark.parametrize("share", [0.003, 0.1, 0.6])
def test_the_cheapest_of_all_plans(
    measured: Profile, unit: Literal["bit_operations", "average_bits", "latency"], predictor: str, share: float
) -> None:
    times = LatencyTable.of({site: {"int2": 1, "int3": 3, "int4": 1.5, "int8": 2} for site in measured.inventory.names})
    every = [Plan(measured.inventory, names) for names in itertools.product(GRIDS, repeat=3)]
    damages = [damage_of(measured, predictor, plan) for plan in every]
    tolerance = min(damages) + share * (max(damages) - min(damages)) + 1e-9
    budget = gq.Budget(average_bits=9, latency=99, latency_table=times)
    evidence = gq.allocate(measured, budget, predictor=predictor).evidence

    def cost(plan: Plan) -> float:
        return float(getattr(Plan(plan.inventory, plan.names, evidence), unit))

    best = min(cost(plan) for plan, damage in zip(every, damages, strict=True) if damage <= tolerance)
    for method in ("exact", "gradient"):
        options = {"minimise": unit, "predictor": predictor, "latency_table": times, "menu": GRIDS}
        found = allocate_cheapest(measured, tolerance, method=method, **options)
        assert found.damage == pytest.approx(damage_of(measured, predictor, found.plan))
        assert found.damage <= tolerance
        assert found.cost == pytest.approx(cost(found.plan))
        assert found.lower_bound <= best * (1 + 1e-12)
        assert found.cost >= best * (1 - 1e-12)
        if method == "exact":
            assert found.cost == pytest.approx(best)
            assert found.lower_bound == pytest.approx(best, rel=1e-6)


def test_out_of_reach_and_nonsense(measured: Profile) -> None:
    with pytest.raises(BudgetError, match="out of reach: the most exact"):
        allocate_cheapest(measured, 1e-15, menu=GRIDS)
    with pytest.raises(PlanError, match="minimise"):
        allocate_cheapest(measured, 1.0, minimise="watts")  # type: ignore[arg-type]
