"""Refinement finds what counting all plans finds, keeps the request, and goes on where it was interrupted."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from torch import nn

import geoquant as gq
from geoquant.errors import FileFormatError, PlanError
from geoquant.models import fused_groups
from geoquant.plan import Plan, uniform_plan
from geoquant.quantize import quantize
from geoquant.search import Refined, refine
from geoquant.sensitivity import Profile
from nets import small_batches, small_net

GRIDS = ("int2", "int3", "int4", "int6")
BITS = 4.2


@pytest.fixture(scope="module")
def measured() -> Profile:
    return gq.profile(small_net(), small_batches(), grids=GRIDS, predictors=["weight_error"])


@pytest.fixture(scope="module")
def start(measured: Profile) -> Plan:
    """The worst plan that greedy could not fill further: a start from which there is a way to go."""
    return gq.allocate(measured, gq.Budget(average_bits=BITS), solver="uniform")


def kl(plan: Plan) -> float:
    return gq.divergence(small_net(), quantize(small_net(), plan), small_batches(4, 32, 9)).value


@pytest.fixture(scope="module")
def refined(start: Plan) -> Refined:
    return refine(small_net(), start, small_batches(4, 32, 9), evaluations=25)


def test_it_finds_the_best_of_all_plans(measured: Profile, refined: Refined) -> None:
    every = [Plan(measured.inventory, names) for names in itertools.product(GRIDS, repeat=3)]
    values = {plan.names: kl(plan) for plan in every if plan.average_bits <= BITS}
    assert refined.kl == pytest.approx(kl(refined.plan), rel=1e-4)
    assert refined.kl < 0.8 * refined.trace[0].kl
    assert refined.kl <= 1.05 * min(values.values())
    assert len({step.names for step in refined.trace}) == len(refined.trace), "a plan was evaluated twice"


def test_every_plan_keeps_the_budget_and_the_trust_region(measured: Profile, refined: Refined) -> None:
    current = refined.trace[0].names
    for step in refined.trace[1:]:
        assert Plan(measured.inventory, step.names).average_bits <= BITS
        if step.accepted:
            assert step.change < -2 * step.stderr
            current = step.names
    assert current == refined.plan.names
    small = refine(small_net(), gq.allocate(measured, gq.Budget(average_bits=BITS)), small_batches(), radius=1)
    first = small.trace[0].names
    assert all(sum(a != b for a, b in zip(first, step.names, strict=True)) <= step.radius for step in small.trace[1:2])


def test_the_refined_plan_carries_evidence_that_can_be_resolved(refined: Refined) -> None:
    evidence = refined.plan.evidence
    assert evidence is not None
    assert evidence.table.predictor == "weight_error_refined"
    assert evidence.table.unit == "nats per prediction"
    assert evidence.optimality.lower_bound <= evidence.optimality.objective
    assert refined.plan.resolve(average_bits=3.4).average_bits <= 3.4


def test_an_interrupted_run_goes_on_and_ends_like_one_that_was_not(
    start: Plan, refined: Refined, tmp_path: Path
) -> None:
    state, calls = tmp_path / "state.json", []

    def deploy(plan: Plan) -> nn.Module:
        calls.append(plan.names)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return quantize(small_net(), plan)

    options = {"deploy": deploy, "evaluations": 25, "state": state}
    with pytest.raises(KeyboardInterrupt):
        refine(small_net(), start, small_batches(4, 32, 9), **options)
    assert len(json.loads(state.read_text())["content"]["names"]) == 3
    again = refine(small_net(), start, small_batches(4, 32, 9), **options)
    assert again == refined
    assert len(calls) == len(refined.trace) + 1, "only the interrupted evaluation is repeated"
    with pytest.raises(PlanError, match="another plan"):
        refine(small_net(), start, small_batches(3, 32, 9), state=state)
    state.write_text(state.read_text()[:-40])
    with pytest.raises(FileFormatError):
        refine(small_net(), start, small_batches(4, 32, 9), state=state)


def test_softened_predictions_may_decide_and_the_figures_stay_divergences(start: Plan, tmp_path: Path) -> None:
    options = {"temperature": 16.0, "state": tmp_path / "state.json"}
    found = refine(small_net(), start, small_batches(4, 32, 9), evaluations=12, **options)
    assert found.temperature == 16
    assert "temperature 16" in str(found)
    assert [step.kl for step in found.trace[:1]] == [pytest.approx(kl(start), rel=1e-4)]
    assert found.kl == pytest.approx(kl(found.plan), rel=1e-4)
    assert found.kl < found.trace[0].kl
    with pytest.raises(PlanError, match="another plan"):
        refine(small_net(), start, small_batches(4, 32, 9), state=tmp_path / "state.json")


def test_wishes_are_kept(measured: Profile) -> None:
    budget = gq.Budget(average_bits=5)
    plan = gq.allocate(measured, budget, fixed={"stem": "int6"}, fused=[("block", "head")], solver="uniform")
    found = refine(small_net(), plan, small_batches(), evaluations=6)
    assert found.plan.grid("stem") == found.plan.grids[0]
    for step in found.trace:
        assert step.names[0] == "int6"
        assert step.names[1] == step.names[2]
    assert fused_groups(measured.inventory.names, [("block", "head")])


def test_noise_is_not_progress(start: Plan) -> None:
    """Where all plans are the same model, nothing is accepted, and the table says nothing of zeros."""
    found = refine(small_net(), start, small_batches(), deploy=lambda plan: small_net(), evaluations=8)
    assert found.plan.names == start.names
    assert sum(step.accepted for step in found.trace) == 1


def test_what_cannot_be_refined(start: Plan) -> None:
    with pytest.raises(PlanError, match="by hand"):
        refine(small_net(), uniform_plan(small_net(), "int4"), small_batches())
    with pytest.raises(PlanError, match="evaluations=0"):
        refine(small_net(), start, small_batches(), evaluations=0)
