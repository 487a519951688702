"""Chosen activation grids: the best of all plans, within every budget, resolved without measuring, kept on disk."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import geoquant as gq
from geoquant import storage
from geoquant.allocation import SOLVERS
from geoquant.errors import BudgetError, PlanError
from geoquant.grids import ActivationGrid, Grid
from geoquant.plan import Budget, LatencyTable, Plan, allocate_cheapest, plan_text, uniform_plan
from geoquant.sensitivity import ActivationTable, Profile
from nets import small_batches, small_net

GRIDS = ("int2", "int4", "int8")
INPUTS = ("int2:affine", "int4:affine:token", "int8")
SITES = ("stem", "block", "head", "add:1")


@pytest.fixture(scope="module")
def measured() -> Profile:
    predictors = ["one_layer_kl", "weight_error"]
    options = {"grids": GRIDS, "predictors": predictors, "activations": INPUTS, "activation_sites": SITES}
    return gq.profile(small_net(), small_batches(), **options)


def random_damages(measured: Profile, seed: int) -> Profile:
    """Return the profile with other damages of weights and activations."""
    draw = np.random.default_rng([5, seed])
    assert measured.activations is not None

    def drawn(rows: int, columns: int) -> tuple[tuple[float, ...], ...]:
        return tuple(map(tuple, (10 ** draw.uniform(-5, 1, (rows, columns))).tolist()))

    inputs = replace(measured.activations.damages, damage=drawn(len(SITES), len(INPUTS)))
    table = replace(measured.tables[0], damage=drawn(3, len(GRIDS)))
    return replace(measured, tables=(table,), activations=replace(measured.activations, damages=inputs))


def times(seed: int = 0) -> LatencyTable:
    """A table that sees both grids of the layers, and the operand's."""
    draw = np.random.default_rng(seed)
    rows = {
        site: {f"{grid}/{entering}": round(draw.uniform(0.1, 0.9), 4) for grid in GRIDS for entering in INPUTS}
        for site in ("stem", "block")
    }
    rows["head"] = {grid: round(draw.uniform(0.1, 0.9), 4) for grid in GRIDS}
    rows["add:1"] = {entering: round(draw.uniform(0.1, 0.9), 4) for entering in INPUTS}
    return LatencyTable.of(rows, base=0.5)


class Everything:
    """All plans of a profile, with their damage and what they take, counted without the library's own counting."""

    def __init__(self, profile: Profile, table: LatencyTable) -> None:
        assert profile.activations is not None
        self.profile, self.inputs, self.times = profile, profile.activations, table
        pairs = itertools.product(itertools.product(GRIDS, repeat=3), itertools.product(INPUTS, repeat=4))
        self.plans = [
            Plan(profile.inventory, names, None, tuple(zip(SITES, chosen, strict=True))) for names, chosen in pairs
        ]

    def damage(self, plan: Plan) -> float:
        table = self.profile.table()
        weights = [table.row(s)[table.grids.index(g)] for s, g in zip(plan.inventory.names, plan.names, strict=True)]
        entering = [self.inputs.damages.row(s)[self.inputs.grids.index(g)] for s, g in plan.activations]
        return sum(weights) + sum(entering)

    def taken(self, plan: Plan, count_bytes: bool = True) -> dict[str, Fraction]:
        bits = {site: Fraction(str(ActivationGrid.parse(grid).bits)) for site, grid in plan.activations}
        rows = list(zip(plan.inventory.names, self.profile.macs, plan.names, strict=True))
        grids = dict(plan.activations)
        layers = [f"{name}/{grids[site]}" if site != "head" else name for site, _, name in rows]
        found = {(site, name): Fraction(str(time)) for site, name, time in self.times.entries}
        latency = sum(found[site, name] for (site, _, _), name in zip(rows, layers, strict=True))
        elements = dict(zip(self.inputs.sites, self.inputs.elements, strict=True))
        return {
            "average_bits": Fraction(sum(cost.total_bits for cost in plan.costs), plan.inventory.weights),
            "bytes": Fraction(plan.bytes) if count_bytes else Fraction(),
            "bit_operations": sum((macs * Fraction(Grid.parse(n).bits) * bits[s] for s, macs, n in rows), Fraction()),
            "latency": Fraction(str(self.times.base)) + latency + found["add:1", grids["add:1"]],
            "average_activation_bits": Fraction(sum(elements[s] * bits[s] for s in SITES), sum(elements.values())),
        }


KINDS = [
    ("bit_operations",),
    ("latency",),
    ("average_activation_bits",),
    ("average_bits", "average_activation_bits"),
    ("bytes", "average_activation_bits"),
    ("bit_operations", "latency", "average_bits"),
    ("bytes", "bit_operations", "average_bits", "latency", "average_activation_bits"),
]


@pytest.mark.parametrize("kind", KINDS, ids="+".join)
def test_the_plan_is_the_best_of_all_within(measured: Profile, kind: tuple[str, ...]) -> None:
    """2,187 plans counted one by one: every solver keeps every budget, and the exact one is exact."""
    profile = random_damages(measured, len(kind))
    all_plans = Everything(profile, times())
    taken = [all_plans.taken(plan, "bytes" in kind) for plan in all_plans.plans]
    damages = [all_plans.damage(plan) for plan in all_plans.plans]
    for share in (0.0, 0.25, 0.6):
        ends = {name: (min(each[name] for each in taken), max(each[name] for each in taken)) for name in kind}
        some = {name: float(low + Fraction(share) * (high - low)) for name, (low, high) in ends.items()}
        limits = {name: value if name != "latency" else value + 2e-6 for name, value in some.items()}
        limits = {name: int(value) if name == "bytes" else value for name, value in limits.items()}
        fits = [all(each[name] <= Fraction(str(limit)) for name, limit in limits.items()) for each in taken]
        best = min((damage for damage, fit in zip(damages, fits, strict=True) if fit), default=None)
        budget = Budget(**limits, latency_table=times())
        if best is None:
            with pytest.raises(BudgetError):
                gq.allocate(profile, budget, menu=GRIDS)
            continue
        for solver in SOLVERS.names():
            plan = gq.allocate(profile, budget, solver=solver, menu=GRIDS)
            found = all_plans.taken(replace(plan, evidence=None))
            assert all(found[name] <= Fraction(str(limit)) for name, limit in limits.items()), solver
            assert plan.evidence is not None
            assert plan.evidence.optimality.lower_bound <= best * (1 + 1e-9)
            assert all_plans.damage(plan) >= best * (1 - 1e-9)
            assert plan.evidence.optimality.objective == pytest.approx(all_plans.damage(plan))
            if solver == "milp" and "bytes" not in kind:
                assert all_plans.damage(plan) == pytest.approx(best, rel=1e-6)


def test_no_plan_exceeds_any_of_its_budgets(measured: Profile) -> None:
    """Random damages, budgets that some plan meets, some grids given; judged with exact numbers."""
    delivered = 0
    for number in range(60):
        draw = np.random.default_rng([13, number])
        profile, table = random_damages(measured, 100 + number), times(number % 5)
        counted = Everything.__new__(Everything)
        counted.profile, counted.inputs, counted.times = profile, profile.activations, table
        names, chosen = tuple(draw.choice(GRIDS, 3).tolist()), draw.choice(INPUTS, 4).tolist()
        some = Plan(profile.inventory, names, None, tuple(zip(SITES, chosen, strict=True)))
        limits = {name: float(value) for name, value in counted.taken(some).items()}
        limits["latency"] += 2e-6
        limits |= {name: limits[name] * (1 + 1e-12) for name in ("average_bits", "average_activation_bits")}
        limits["bytes"] = int(limits["bytes"])
        asked = draw.choice(list(limits), draw.integers(1, 6), replace=False).tolist()
        given = {site: chosen[place] for place, site in enumerate(SITES) if draw.random() < 0.2}
        budget = Budget(**{name: limits[name] for name in asked}, latency_table=table)
        if not budget.sees_activations:
            continue
        solver = str(draw.choice(SOLVERS.names()))
        try:
            plan = gq.allocate(profile, budget, solver=solver, menu=GRIDS, activations=given or None)
        except BudgetError:
            assert len(asked) > 1, "one budget that a plan meets was refused"
            continue
        delivered += 1
        found = counted.taken(replace(plan, evidence=None))
        assert all(found[name] <= Fraction(str(limits[name])) for name in asked), (number, asked)
        assert given.items() <= dict(plan.activations).items()
        assert plan.evidence is not None
        assert plan.evidence.optimality.lower_bound <= counted.damage(some) * (1 + 1e-9) + 1e-12
    assert delivered >= 35


def test_a_plan_knows_what_its_activations_take(measured: Profile) -> None:
    counted = Everything.__new__(Everything)
    counted.profile, counted.inputs, counted.times = measured, measured.activations, times()
    budget = Budget(bit_operations=6e5, latency=9, latency_table=times())
    plan = gq.allocate(measured, budget)
    taken = counted.taken(plan)
    assert plan.bit_operations == float(taken["bit_operations"])
    assert plan.average_activation_bits == pytest.approx(float(taken["average_activation_bits"]))
    assert plan.latency == pytest.approx(float(taken["latency"]))
    assert plan.input_damages["add:1"] in counted.inputs.damages.row("add:1")
    text = plan_text(plan)
    assert text.splitlines()[0].endswith("input        its damage")
    assert any(line.startswith("add:1") for line in text.splitlines())
    assert "4 quantized activations of " in text
    assert plan.evidence is not None
    assert "input at " in plan.evidence.reasons[1]


def test_wishes_for_activations_are_obeyed(measured: Profile) -> None:
    budget = Budget(average_activation_bits=18, average_bits=5)
    plan = gq.allocate(measured, budget, activations={"stem": "int8:affine", "add:1": "none"})
    assert dict(plan.activations)["stem"] == "int8:affine", "a grid that was not measured may be given"
    assert "add:1" not in dict(plan.activations)
    assert plan.average_activation_bits is not None
    with pytest.raises(BudgetError, match="average activation bits"):
        gq.allocate(measured, Budget(average_activation_bits=9), activations={"block": None, "add:1": None})
    fused = gq.allocate(measured, budget, fused=[["stem", "block"]])
    assert fused.names[0] == fused.names[1]
    assert dict(fused.activations)["stem"] == dict(fused.activations)["block"], "one kernel, one pair of grids"
    worst = gq.allocate(measured, budget, objective="worst")
    squares = gq.allocate(measured, budget, objective=lambda damages: float(np.square(damages).sum()))
    assert worst.average_activation_bits <= 18 >= squares.average_activation_bits


def test_budgets_that_see_no_activations_leave_them_alone(measured: Profile) -> None:
    assert gq.allocate(measured, Budget(average_bits=4, bytes=10**6)).activations == ()
    bare = replace(measured, activations=None)
    assert gq.allocate(bare, Budget(bit_operations=1e7)).activations == ()
    with pytest.raises(PlanError, match="profile the model with activations"):
        gq.allocate(bare, Budget(average_activation_bits=4))
    with pytest.raises(PlanError, match="scores of weight_error cannot be added"):
        gq.allocate(measured, Budget(bit_operations=1e7), predictor="weight_error")


def test_resolve_equals_a_fresh_allocation_and_survives_the_disk(measured: Profile, tmp_path: Path) -> None:
    budget = Budget(bit_operations=1e6, latency=9, latency_table=times())
    plan = gq.allocate(measured, budget, activations={"stem": "int8", "head": None})
    again = Plan.load(plan.save(tmp_path))
    assert again == plan
    asked = {"average_bits": 5.0, "average_activation_bits": 12.0}
    fresh = gq.allocate(measured, Budget(**asked, latency_table=times()), activations={"stem": "int8", "head": None})
    assert again.resolve(**asked) == fresh
    held = plan.with_activations({"block": "int2:affine"}).resolve(bit_operations=4e6)
    assert held.activations == (("block", "int2:affine"),), "what was put on by hand stays"


def test_plans_of_older_files_are_read(measured: Profile, tmp_path: Path) -> None:
    plan = gq.allocate(measured, Budget(average_bits=4))
    document = plan.to_json()
    del document["evidence"]["inputs"], document["evidence"]["request"]["in_float"]
    del document["evidence"]["request"]["budget"]["average_activation_bits"]
    path = tmp_path / "plan.json"
    storage.write_document(path, "plan", 2, document)
    old = Plan.load(path)
    assert old.names == plan.names
    assert old.average_activation_bits is None
    assert old.resolve(average_bits=3).names == plan.resolve(average_bits=3).names
    assert json.loads(plan.save(path).read_text())["version"] == 3


def test_the_file_has_the_planned_size_and_rounds_as_planned(measured: Profile, tmp_path: Path) -> None:
    net = small_net()
    plan = gq.allocate(measured, Budget(average_activation_bits=5, bytes=uniform_plan(net, "int8").bytes))
    gq.quantize_(net, plan, small_batches())
    assert gq.save(net, plan, tmp_path).stat().st_size == plan.bytes
    assert len({grid for _, grid in plan.activations}) > 1


@pytest.mark.parametrize("share", [0.02, 0.2, 0.7])
@pytest.mark.parametrize("unit", ["bit_operations", "latency"])
def test_the_cheapest_of_all_plans(measured: Profile, unit: str, share: float) -> None:
    profile = random_damages(measured, 7)
    all_plans = Everything(profile, times())
    damages = [all_plans.damage(plan) for plan in all_plans.plans]
    tolerance = min(damages) + share * (max(damages) - min(damages)) + 1e-9
    pairs = zip(all_plans.plans, damages, strict=True)
    best = min(float(all_plans.taken(plan, False)[unit]) for plan, damage in pairs if damage <= tolerance)
    for method in ("exact", "gradient"):
        found = allocate_cheapest(profile, tolerance, minimise=unit, latency_table=times(), menu=GRIDS, method=method)
        assert found.damage == pytest.approx(all_plans.damage(found.plan))
        assert found.damage <= tolerance
        assert found.cost == pytest.approx(float(all_plans.taken(found.plan)[unit]))
        assert found.lower_bound <= best * (1 + 1e-9)
        assert found.cost >= best * (1 - 1e-9)
        if method == "exact":
            assert found.cost == pytest.approx(best)


def test_the_cheapest_keeps_what_is_given(measured: Profile) -> None:
    found = allocate_cheapest(measured, 0.5, activations={"stem": "int8", "block": "none"})
    assert dict(found.plan.activations)["stem"] == "int8"
    assert "block" not in dict(found.plan.activations)
    free = allocate_cheapest(measured, 0.5)
    assert free.cost <= found.cost


def test_latency_of_pairs_is_named_where_it_is_missing(measured: Profile, tmp_path: Path) -> None:
    rows = {site: dict.fromkeys(GRIDS, 1.0) for site in ("stem", "block", "head")}
    rows["stem"] |= {"int4/int8": 0.5}
    table = LatencyTable.of(rows)
    assert table.sees_activations
    assert LatencyTable.load(table.save(tmp_path / "times.json")) == table
    assert table.milliseconds("stem", "int4:mse", "int8:percentile") == 0.5
    assert table.milliseconds("stem", "int4") == table.milliseconds("block", "int4", "int8") == 1.0
    assert table.operand("add:1", "int8") == 0
    with pytest.raises(BudgetError, match="no time for 'stem' at int2/int2:affine"):
        gq.allocate(measured, Budget(latency=9, latency_table=table))


def test_elements_and_not_multiplications_weigh_the_average(measured: Profile) -> None:
    """A known answer: 64 + 512 + 8 + 512 numbers enter; with 2 bits everywhere but 8 at the stem, 2 + 6·64/1096."""
    assert isinstance(measured.activations, ActivationTable)
    assert measured.activations.elements == (64, 512, 8, 512)
    limit = 2 + 6 * 64 / 1096
    plan = gq.allocate(measured, Budget(average_activation_bits=limit + 1e-9), activations={"stem": "int8"})
    assert plan.average_activation_bits == pytest.approx(limit)
    assert {grid for name, grid in plan.activations if name != "stem"} == {"int2:affine"}
    with pytest.raises(BudgetError, match="below the smallest possible plan"):
        gq.allocate(measured, Budget(average_activation_bits=limit - 1e-3), activations={"stem": "int8"})
