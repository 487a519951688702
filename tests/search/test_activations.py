"""Plans with quantized activations are searched and refined like others: what is certified is what is deployed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import geoquant as gq
from geoquant.plan import Plan
from geoquant.quantize import quantize, quantized_state
from geoquant.search import Refined, allocate_within, pipeline, refine
from geoquant.sensitivity import Profile
from nets import small_batches, small_net

GRIDS = ("int3", "int4", "int6", "int8")
INPUTS = ("int3:affine", "int5:affine", "int8:affine")
LIMIT = 9e5  # bit-operations; 41,512 multiplications × 4.7 × 4.7 bits


@pytest.fixture(scope="module")
def measured() -> Profile:
    options = {"grids": GRIDS, "predictors": ["one_layer_kl"], "activations": INPUTS}
    return gq.profile(small_net(), small_batches(), **options)


def evaluated(plan: Plan) -> float:
    batches = small_batches(3, 32, 9)
    return gq.divergence(small_net(), quantize(small_net(), plan, batches), batches).value


def refined_from(start: Plan, **options: object) -> Refined:
    batches = small_batches(3, 32, 9)
    deploy = pipeline(small_net(), batches)
    return refine(small_net(), start, batches, deploy=deploy, **options)  # type: ignore[arg-type]


def test_refinement_moves_both_grids_within_the_budget(measured: Profile, tmp_path: Path) -> None:
    start = gq.allocate(measured, gq.Budget(bit_operations=LIMIT), solver="uniform")
    state = tmp_path / "state.json"
    found = refined_from(start, evaluations=12, state=state)
    assert found.kl == pytest.approx(evaluated(found.plan), rel=1e-4)
    assert found.kl < found.trace[0].kl
    assert len({step.names for step in found.trace}) == len(found.trace)
    chosen = [dict(name.split("=") for name in step.names[3:]) for step in found.trace]
    assert len({tuple(each.values()) for each in chosen}) > 1, "activations are moved too"
    for step, activations in zip(found.trace, chosen, strict=True):
        pairs = zip(measured.macs, step.names, activations.values(), strict=False)
        assert sum(macs * int(w[3]) * int(a[3]) for macs, w, a in pairs) <= LIMIT
    evidence = found.plan.evidence
    assert evidence is not None
    assert evidence.inputs is not None
    predicted = [*found.plan.damages, *found.plan.input_damages.values()]
    assert sum(each for each in predicted if each is not None) == pytest.approx(evidence.optimality.objective)
    assert evidence.optimality.lower_bound <= evidence.optimality.objective
    again = found.plan.resolve(bit_operations=0.7 * LIMIT)
    assert again.bit_operations <= 0.7 * LIMIT
    assert refined_from(start, evaluations=12, state=state).plan == found.plan, "taken up again, nothing is repeated"


class Labelled:
    """Batches whose labels are what the float model says, so that every change of mind is a loss."""

    def __init__(self, count: int, seed: int) -> None:
        net = small_net()
        with torch.no_grad():
            self.batches: list[tuple[Tensor, Tensor]] = [
                (x, net(x).argmax(1)) for x, _ in small_batches(count, 64, seed)
            ]


def test_the_smallest_model_within_a_drop_has_its_activations_on_their_grids(measured: Profile) -> None:
    model, calibration = small_net(), small_batches(2, 64, 3)
    deployed: list[nn.Module] = []

    def deploy(plan: Plan) -> nn.Module:
        deployed.append(quantize(model, plan, calibration, effort="fast"))
        return deployed[-1]

    search, certify = Labelled(8, 4).batches, Labelled(20, 5).batches
    options = {"drop": 0.15, "deploy": deploy, "tolerance": 0.5}
    found = allocate_within(
        model, measured, search, certify, average_activation_bits=6, activations={"head": "int8:affine"}, **options
    )
    assert found.certified
    assert all(trial.plan.average_activation_bits <= 6 for trial in found.trials)
    assert all(dict(trial.plan.activations)["head"] == "int8:affine" for trial in found.trials)
    assert quantized_state(deployed[-1]).plan == found.plan, "the certificate speaks of the plan with its activations"
    given = allocate_within(model, measured, search, certify, activations="int3:affine", **options)
    assert {grid for _, grid in given.plan.activations} == {"int3:affine"}
    bare = allocate_within(model, measured, search, certify, **options)
    assert bare.plan.activations == ()
    assert bare.plan.average_bits <= given.plan.average_bits
