"""Plans keep their budget to the byte, obey every wish, and prove how good they are."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

import geoquant as gq
from geoquant.allocation import SOLVERS
from geoquant.errors import BudgetError, FileFormatError, LayerNameError, PlanError
from geoquant.grids import Grid
from geoquant.plan import Plan, artifact_bytes, diff_rows, diff_text, uniform_plan
from geoquant.sensitivity import Profile
from nets import small_batches, small_net

GRIDS = ("int2", "int3", "int4:affine", "int8")


@pytest.fixture(scope="module")
def measured() -> Profile:
    return gq.profile(small_net(), small_batches(), grids=GRIDS, predictors=["one_layer_kl", "weight_error"])


def every_plan(measured: Profile) -> list[Plan]:
    return [Plan(measured.inventory, names) for names in itertools.product(GRIDS, repeat=len(measured.inventory.sites))]


def total(measured: Profile, plan: Plan) -> float:
    table = measured.table()
    pairs = zip(plan.inventory.names, plan.names, strict=True)
    return sum(table.row(site)[table.grids.index(grid)] for site, grid in pairs)


@pytest.mark.parametrize("average", [2.6, 3.0, 4.2, 5.0, 9.0])
def test_average_bits_plan_is_the_best_of_all_plans(measured: Profile, average: float) -> None:
    plan = gq.allocate(measured, gq.Budget(average_bits=average))
    fitting = [total(measured, other) for other in every_plan(measured) if other.average_bits <= average]
    assert plan.average_bits <= average
    assert total(measured, plan) == pytest.approx(min(fitting), rel=1e-9)
    assert plan.evidence is not None
    assert plan.evidence.optimality.lower_bound <= min(fitting) + 1e-12
    assert plan.evidence.optimality.gap == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.35, 0.7, 1.0])
def test_byte_budget_is_kept_and_its_bound_is_sound(measured: Profile, share: float) -> None:
    plans = every_plan(measured)
    sizes = sorted(plan.bytes for plan in plans)
    budget = int(sizes[0] + share * (sizes[-1] - sizes[0]))
    plan = gq.allocate(measured, gq.Budget(bytes=budget))
    best = min(total(measured, other) for other in plans if other.bytes <= budget)
    assert plan.bytes <= budget
    assert plan.bytes == artifact_bytes(plan.inventory, plan.grids)
    assert plan.evidence is not None
    assert plan.evidence.optimality.lower_bound <= best + 1e-12
    assert best <= total(measured, plan) + 1e-12


def test_where_only_code_lengths_differ_the_byte_bound_is_tight() -> None:
    """The proven gap of a byte budget is then no more than what eight bytes of padding can buy."""
    measured = gq.profile(small_net(), small_batches(), grids=["int2", "int3", "int4", "int8"])
    budget = uniform_plan(measured.inventory, "int3").bytes
    plan = gq.allocate(measured, gq.Budget(bytes=budget))
    roomier = gq.allocate(measured, gq.Budget(bytes=budget + 16))
    assert plan.evidence is not None
    assert roomier.evidence is not None
    assert plan.evidence.optimality.lower_bound >= roomier.evidence.optimality.objective - 1e-12


def test_both_limits_hold_at_once(measured: Profile) -> None:
    tight = uniform_plan(measured.inventory, "int3")
    plan = gq.allocate(measured, gq.Budget(average_bits=5.0, bytes=tight.bytes))
    assert plan.bytes <= tight.bytes
    plan = gq.allocate(measured, gq.Budget(average_bits=tight.average_bits, bytes=10**9))
    assert plan.average_bits <= tight.average_bits


@pytest.mark.parametrize("solver", SOLVERS.names())
def test_every_solver_keeps_both_budgets(measured: Profile, solver: str) -> None:
    for average in (2.7, 3.3, 5.5):
        assert gq.allocate(measured, gq.Budget(average_bits=average), solver=solver).average_bits <= average
    size = uniform_plan(measured.inventory, "int3").bytes
    assert gq.allocate(measured, gq.Budget(bytes=size), solver=solver).bytes <= size


def test_budget_below_the_smallest_plan_says_the_smallest(measured: Profile) -> None:
    smallest = min(every_plan(measured), key=lambda plan: plan.bytes)
    with pytest.raises(BudgetError, match=f"{smallest.bytes:,} bytes"):
        gq.allocate(measured, gq.Budget(bytes=smallest.bytes - 1))
    gq.allocate(measured, gq.Budget(bytes=smallest.bytes))
    with pytest.raises(BudgetError, match="below the smallest possible plan, which takes 2"):
        gq.allocate(measured, gq.Budget(average_bits=1.5))


def test_wishes_are_obeyed(measured: Profile) -> None:
    budget = gq.Budget(average_bits=4.5)
    plan = gq.allocate(measured, budget, menu=[2, 8])
    assert {grid.bits for grid in plan.grids} <= {2, 8}
    plan = gq.allocate(measured, budget, lower={"stem": 4}, upper={"re:block|head": 3})
    assert plan.grid("stem").bits >= 4
    assert max(plan.grid("block").bits, plan.grid("head").bits) <= 3
    plan = gq.allocate(measured, budget, fixed={"stem": "int8", "head": 2})
    assert (str(plan.grid("stem")), plan.grid("head").bits) == ("int8", 2)
    plan = gq.allocate(measured, gq.Budget(average_bits=6.5), fixed={"stem": "fp32"})
    assert str(plan.grid("stem")) == "fp32"
    plan = gq.allocate(measured, budget, fused=[["stem", "head"]])
    assert plan.grid("stem") == plan.grid("head")


def test_objectives_differ_as_they_should(measured: Profile) -> None:
    budget = gq.Budget(average_bits=3.4)
    by_sum, by_worst = gq.allocate(measured, budget), gq.allocate(measured, budget, objective="worst")

    def worst(plan: Plan) -> float:
        return max(damage for damage in plan.damages if damage is not None)

    fitting = [plan for plan in every_plan(measured) if plan.average_bits <= 3.4]
    table = measured.table()
    best = min(
        max(table.row(s)[table.grids.index(g)] for s, g in zip(p.inventory.names, p.names, strict=True))
        for p in fitting
    )
    assert worst(by_worst) == pytest.approx(best)
    assert total(measured, by_sum) <= total(measured, by_worst)
    squared = gq.allocate(measured, budget, objective=lambda damages: float(np.square(damages).sum()))
    assert squared.average_bits <= 3.4
    with pytest.raises(PlanError, match="objective= again"):
        squared.resolve(average_bits=4)
    assert squared.resolve(average_bits=4, objective="sum").average_bits <= 4


def test_resolve_equals_a_fresh_allocation_and_survives_the_disk(measured: Profile, tmp_path: Path) -> None:
    plan = gq.allocate(measured, gq.Budget(average_bits=3.5), predictor="weight_error", fixed={"stem": 8})
    again = Plan.load(plan.save(tmp_path))
    assert again == plan
    assert again.resolve(average_bits=5) == gq.allocate(
        measured, gq.Budget(average_bits=5), predictor="weight_error", fixed={"stem": 8}
    )
    with pytest.raises(PlanError, match="written by hand"):
        uniform_plan(measured.inventory, "int4").resolve(average_bits=3)


def test_same_request_gives_the_same_file(measured: Profile, tmp_path: Path) -> None:
    texts = [
        gq.allocate(measured, gq.Budget(average_bits=3.1)).save(tmp_path / f"{i}.json").read_text() for i in (0, 1)
    ]
    assert texts[0] == texts[1]


def test_mistakes_get_a_sentence(measured: Profile) -> None:
    budget = gq.Budget(average_bits=4)
    with pytest.raises(LayerNameError, match="steem"):
        gq.allocate(measured, budget, fixed={"steem": 8})
    with pytest.raises(PlanError, match="was not measured"):
        gq.allocate(measured, budget, fixed={"stem": "int7"})
    with pytest.raises(PlanError, match="menu"):
        gq.allocate(measured, budget, menu=[7])
    with pytest.raises(PlanError, match="holds no scores of 'hawq_v2'"):
        gq.allocate(measured, budget, predictor="hawq_v2")


def test_unmeasured_layers_stay_in_float_and_count(tmp_path: Path) -> None:
    measured = gq.profile(small_net(), small_batches(), grids=["int2"], exclude=["head"], predictors=["weight_error"])
    plan = gq.allocate(measured, gq.Budget(average_bits=10))
    assert str(plan.grid("head")) == "fp32"
    sites = {site.name: site for site in plan.inventory.sites}
    stored = 32 * sites["head"].weights
    stored += sum(Grid.parse("int2").storage(sites[name].matrix_shape).total_bits for name in ("stem", "block"))
    assert plan.average_bits == stored / plan.inventory.weights


def test_reasons_speak_of_the_neighbours(measured: Profile) -> None:
    plan = gq.allocate(measured, gq.Budget(average_bits=4), fixed={"head": "int8"})
    assert plan.evidence is not None
    why = dict(zip(plan.inventory.names, plan.evidence.reasons, strict=True))
    assert why["head"] == "the only grid that the request allows"
    assert "nats" in why["block"]


def test_diff_lists_what_differs(measured: Profile) -> None:
    one = uniform_plan(measured.inventory, "int4")
    two = uniform_plan(measured.inventory, "int4", {"head": "int8"})
    rows = diff_rows(one, two)
    assert [(row["layer"], row["first"], row["second"]) for row in rows] == [("head", "int4", "int8")]
    assert rows[0]["bytes"] == 20  # 40 weights, 4 bits more each
    assert "no layer differs" in diff_text(one, one)


def test_a_plan_with_an_impossible_grid_is_refused_on_loading(measured: Profile, tmp_path: Path) -> None:
    from geoquant import storage

    document = uniform_plan(measured.inventory, "int4").to_json()
    document["names"][0] = "int77"
    storage.write_document(tmp_path / "plan.json", "plan", 1, document)
    with pytest.raises(gq.GeoquantError, match="bits=77"):
        Plan.load(tmp_path)
    document = json.loads((tmp_path / "plan.json").read_text())
    document["content"]["names"][0] = "int4"
    (tmp_path / "plan.json").write_text(json.dumps(document))
    with pytest.raises(FileFormatError, match="changed after geoquant wrote it"):
        Plan.load(tmp_path)
