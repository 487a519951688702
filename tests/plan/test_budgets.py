"""Bit-operations and latency: counted as stated, kept exactly, any several at once, refused in one sentence."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import geoquant as gq
from geoquant import storage
from geoquant.allocation import SOLVERS
from geoquant.errors import BudgetError, FileFormatError, GridError, PlanError
from geoquant.grids import Grid
from geoquant.models import find_sites
from geoquant.models.zoo import resnet20_cifar10
from geoquant.plan import LatencyTable, Plan, summary
from geoquant.sensitivity import Profile
from geoquant.sensitivity.operations import multiplications
from nets import small_batches, small_net

GRIDS = ("int2", "int3", "int4:affine", "ternary")


@pytest.fixture(scope="module")
def measured() -> Profile:
    return gq.profile(small_net(), small_batches(), grids=GRIDS, predictors=["one_layer_kl", "weight_error"])


@pytest.fixture(scope="module")
def times(measured: Profile) -> LatencyTable:
    draw = np.random.default_rng(0)
    rows = {site: {grid: round(draw.uniform(0.1, 0.9), 4) for grid in GRIDS} for site in measured.inventory.names}
    return LatencyTable.of(rows, base=0.5)


def exact_operations(measured: Profile, names: tuple[str, ...], activation_bits: int = 32) -> Fraction:
    pairs = zip(measured.macs, names, strict=True)
    return activation_bits * sum(count * Fraction(str(Grid.parse(name).bits)) for count, name in pairs)


def test_multiplications_are_those_of_the_layers(measured: Profile) -> None:
    """Stem 64 positions × 9 × 8, block 64 × 72 × 8, head 8 × 5; for one sample, whatever the batch."""
    assert measured.macs == (64 * 72, 64 * 576, 40)
    assert multiplications(small_net(), find_sites(small_net()), small_batches(1, 5)[0]) == measured.macs


def test_multiplications_of_the_published_resnet20() -> None:
    """40.55 million, as the literature counts them."""
    net = resnet20_cifar10().eval()
    assert sum(multiplications(net, find_sites(net), torch.zeros(2, 3, 32, 32))) == 40_551_040


def test_multiplications_of_attention_embeddings_and_grouped_convolutions() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(10, 8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.conv = nn.Conv1d(8, 8, 3, groups=4, padding=1)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            x = self.embed(tokens)
            x, _ = self.attention(x, x, x)
            return self.conv(self.conv(x.transpose(1, 2)))

    net = Net().eval()
    sites = find_sites(net)
    found = dict(
        zip(
            [site.name for site in sites], multiplications(net, sites, torch.zeros(3, 6, dtype=torch.long)), strict=True
        )
    )
    used_twice = 2 * 6 * 8 * 2 * 3
    assert found == {
        "embed": 0,
        "attention.in_proj": 6 * 8 * 24,
        "attention.out_proj": 6 * 8 * 8,
        "conv": used_twice,
    }


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["bit_operations", "latency", "both", "all"])
def test_the_plan_is_the_best_of_all_within(measured: Profile, times: LatencyTable, kind: str, share: float) -> None:
    every = [Plan(measured.inventory, names) for names in itertools.product(GRIDS, repeat=3)]
    table = measured.table()

    def total(plan: Plan) -> float:
        pairs = zip(plan.inventory.names, plan.names, strict=True)
        return sum(table.row(site)[table.grids.index(grid)] for site, grid in pairs)

    def milliseconds(plan: Plan) -> Fraction:
        pairs = zip(plan.inventory.names, plan.names, strict=True)
        return Fraction(str(times.base)) + sum(Fraction(str(times.milliseconds(*pair))) for pair in pairs)

    def between(values: list) -> float:
        return float(min(values)) + share * float(max(values) - min(values))

    limits = {
        "bit_operations": between([exact_operations(measured, plan.names) for plan in every]),
        "latency": between([milliseconds(plan) for plan in every]) + 1e-9,
        "average_bits": between([plan.average_bits for plan in every]) + 1,
        "bytes": int(between([plan.bytes for plan in every])) + 50,
    }
    names = {"both": ["bit_operations", "latency"], "all": list(limits)}.get(kind, [kind])
    asked = {name: limits[name] + (0 if len(names) == 1 else 0.15 * limits[name]) for name in names}
    if "bytes" in asked:
        asked["bytes"] = int(asked["bytes"])

    def fits(plan: Plan) -> bool:
        return (
            exact_operations(measured, plan.names) <= Fraction(str(asked.get("bit_operations", 1e99)))
            and milliseconds(plan) <= Fraction(str(asked.get("latency", 1e99)))
            and plan.average_bits <= asked.get("average_bits", 1e99)
            and plan.bytes <= asked.get("bytes", 1e99)
        )

    best = min((total(plan) for plan in every if fits(plan)), default=None)
    budget = gq.Budget(**asked, latency_table=times)
    if best is None:
        with pytest.raises(BudgetError):
            gq.allocate(measured, budget, menu=GRIDS)
        return
    for solver in SOLVERS.names():
        plan = gq.allocate(measured, budget, solver=solver, menu=GRIDS)
        assert fits(plan)
        assert plan.evidence is not None
        assert plan.evidence.optimality.lower_bound <= best + 1e-12
        assert total(plan) >= best - 1e-12
    assert total(gq.allocate(measured, budget, menu=GRIDS)) <= best * (1 + 1e-6) + 1e-12


def test_no_delivered_plan_exceeds_any_of_its_budgets(measured: Profile, times: LatencyTable) -> None:
    """Random tables, budgets of every kind and several at once, every solver; judged with exact numbers."""
    delivered = 0
    for number in range(240):
        draw = np.random.default_rng([11, number])
        damage = 10 ** draw.uniform(-6, 1, (3, len(GRIDS)))
        table = replace(measured.tables[0], damage=tuple(map(tuple, damage.tolist())))
        names = tuple(draw.choice(GRIDS, 3).tolist())
        some = Plan(measured.inventory, names)
        limits = {
            "average_bits": some.average_bits,
            "bytes": some.bytes,
            "bit_operations": float(exact_operations(measured, names)) * 1.000001,
            "latency": times.base
            + sum(times.milliseconds(*pair) for pair in zip(some.bits, names, strict=True))
            + 1e-6,
        }
        asked = draw.choice(list(limits), draw.integers(1, 5), replace=False).tolist()
        budget = gq.Budget(**{name: limits[name] for name in asked}, latency_table=times)
        profile = replace(measured, tables=(table,))
        try:
            plan = gq.allocate(profile, budget, solver=str(draw.choice(SOLVERS.names())), menu=GRIDS)
        except BudgetError:
            assert len(asked) > 1, "one budget that a plan meets was refused"
            continue
        delivered += 1
        assert plan.evidence is not None
        assert "average_bits" not in asked or plan.average_bits <= limits["average_bits"]
        assert "bytes" not in asked or plan.bytes <= limits["bytes"]
        assert "bit_operations" not in asked or exact_operations(measured, plan.names) <= limits["bit_operations"]
        assert "latency" not in asked or plan.latency <= limits["latency"]
        rows = np.arange(3)
        other = damage[rows, [GRIDS.index(name) for name in names]].sum()
        assert plan.evidence.optimality.lower_bound <= other * (1 + 1e-9), "the bound is above a plan that fits"
    assert delivered >= 230


def test_activation_bits_scale_the_count(measured: Profile) -> None:
    plan = gq.allocate(measured, gq.Budget(bit_operations=4e6, activation_bits=16))
    assert plan.bit_operations == pytest.approx(float(exact_operations(measured, plan.names, 16)))
    assert plan.names == gq.allocate(measured, gq.Budget(bit_operations=8e6)).names
    assert f"{plan.bit_operations:.4g} bit-operations" in summary(plan)


def test_a_saved_plan_answers_budgets_of_every_kind(measured: Profile, times: LatencyTable, tmp_path: Path) -> None:
    plan = gq.allocate(measured, gq.Budget(average_bits=4, latency=9, latency_table=times), menu=GRIDS)
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again == plan
    assert again.latency == pytest.approx(plan.latency)
    least = min(exact_operations(measured, names) for names in itertools.product(GRIDS, repeat=3))
    assert again.resolve(bit_operations=float(least)).bit_operations == pytest.approx(float(least))
    fastest = times.base + sum(min(times.milliseconds(site, grid) for grid in GRIDS) for site in plan.inventory.names)
    assert again.resolve(latency=fastest + 1e-6).latency == pytest.approx(fastest)
    with pytest.raises(BudgetError, match=r"0\.6 ms is below the smallest possible plan, which takes"):
        again.resolve(latency=0.6)


def test_budgets_below_the_smallest_plan_say_what_it_takes(measured: Profile) -> None:
    least = exact_operations(measured, ("ternary",) * 3)
    with pytest.raises(BudgetError, match=f"takes {math.ceil(least)} bit-operations"):
        gq.allocate(measured, gq.Budget(bit_operations=float(least) - 1))
    assert gq.allocate(measured, gq.Budget(bit_operations=float(least))).names == ("ternary",) * 3


def test_what_is_missing_is_named(measured: Profile, times: LatencyTable, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="give latency_table"):
        gq.Budget(latency=3)
    with pytest.raises(BudgetError, match="needs a limit"):
        gq.Budget(latency_table=times)
    short = LatencyTable.of({"stem": {"int2": 0.1}})
    with pytest.raises(BudgetError, match="no time for 'stem' at int3"):
        gq.allocate(measured, gq.Budget(latency=3, latency_table=short))
    with pytest.raises(BudgetError, match="no layer 'block'"):
        gq.allocate(measured, gq.Budget(latency=3, latency_table=short), fixed={"stem": "int2"})
    measured.save(tmp_path)
    path = tmp_path / "profile.json"
    content = json.loads(path.read_text())["content"]
    del content["macs"]
    storage.write_document(path, "profile", 2, content)
    old = Profile.load(path)
    assert old.macs == ()
    assert gq.allocate(old, gq.Budget(average_bits=4)).bit_operations is None
    with pytest.raises(PlanError, match="profile the model again"):
        gq.allocate(old, gq.Budget(bit_operations=1e9))


def test_a_latency_table_is_plain_json(times: LatencyTable, tmp_path: Path) -> None:
    assert LatencyTable.load(times.save(tmp_path / "times.json")) == times
    path = tmp_path / "by_hand.json"
    path.write_text('{"milliseconds": {"stem": {"int4:mse": 2, "int4:tensor": 1}}}')
    table = LatencyTable.load(path)
    assert (table.milliseconds("stem", "int4"), table.milliseconds("stem", "int4:tensor:maxabs")) == (2, 1)
    for text, error in {
        "{": FileFormatError,
        "[]": FileFormatError,
        '{"milliseconds": {"stem": {"int4": "fast"}}}': FileFormatError,
        '{"milliseconds": {}, "base": "none"}': FileFormatError,
        '{"milliseconds": {"stem": {"int4": -1}}}': BudgetError,
        '{"milliseconds": {"stem": {"float7": 1}}}': GridError,
    }.items():
        path.write_text(text)
        with pytest.raises(error):
            LatencyTable.load(path)
    with pytest.raises(FileFormatError, match="cannot read"):
        LatencyTable.load(tmp_path / "nowhere.json")
