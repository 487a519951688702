"""Marginal damage: what moving one site does with all others quantized, measured the slow way."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import geoquant as gq
from geoquant.evaluation import divergence
from geoquant.grids import Grid
from geoquant.models import find_sites, get_weight, set_weight_, take_inventory
from geoquant.plan import Plan
from geoquant.quantize import quantize
from geoquant.sensitivity import MarginalKL, Subject, make_subject, stored_bits, thrifty_columns
from nets import small_batches, small_net

GRIDS = ["int2", "int3", "int4", "int8"]


def subject(batches: int = 3, scale: float = 1.0) -> Subject:
    net = small_net()
    with torch.no_grad():
        net.head.weight.mul_(scale)
    return make_subject(net, small_batches(batches), grids=GRIDS)


def deploy(model: nn.Module, grids: tuple[Grid, ...]) -> nn.Module:
    return quantize(model, Plan(take_inventory(model), tuple(map(str, grids))))


@pytest.mark.parametrize("exact", [False, True])
def test_changes_are_differences_of_divergences_of_whole_plans(exact: bool) -> None:
    looked = subject()
    base = ("int3", "int2", "int4")
    mine = MarginalKL(base, lambda grids: deploy(looked.model, grids), exact=exact, tolerance=0)
    found = mine.marginals(looked)
    plan = divergence(looked.model, deploy(looked.model, tuple(map(Grid.parse, base))), looked.batches).value
    assert found.base_kl.value == pytest.approx(plan, rel=1e-6)
    for row in range(3):
        for column, name in enumerate(GRIDS):
            moved = [*base]
            moved[row] = name
            real = divergence(looked.model, deploy(looked.model, tuple(map(Grid.parse, moved))), looked.batches).value
            assert found.change[row, column] == pytest.approx(real - plan, rel=1e-4, abs=1e-8)
            assert (found.change[row, column] == 0) == (name == base[row])


def test_without_a_pipeline_sites_are_rounded_to_nearest() -> None:
    looked = subject()
    base = ("int3", "int2", "int4")
    with_it = MarginalKL(base, lambda grids: deploy(looked.model, grids)).marginals(looked)
    np.testing.assert_allclose(MarginalKL(base).marginals(looked).change, with_it.change, rtol=1e-5, atol=1e-9)


def test_damage_of_a_plan_is_exact_for_the_base_and_for_single_moves() -> None:
    looked = subject()
    found = MarginalKL(("int3", "int2", "int4"), tolerance=0).marginals(looked)
    assert found.damage([1, 0, 2]) == found.base_kl.value
    moved = deploy(looked.model, tuple(map(Grid.parse, ("int3", "int8", "int4"))))
    assert found.damage([1, 3, 2]) == pytest.approx(divergence(looked.model, moved, looked.batches).value, rel=1e-5)


def test_the_operating_point_matters() -> None:
    # Twin: with the others in float, the same moves cost something else; a one-layer score cannot know.
    looked = subject(scale=5.0)
    low = MarginalKL(("int2", "int2", "int2"), tolerance=0).marginals(looked).change
    high = MarginalKL(("int8", "int8", "int8"), tolerance=0).marginals(looked).change
    step = np.array([low[row, 0] - low[row, 3] for row in range(3)])
    far = np.array([high[row, 0] - high[row, 3] for row in range(3)])
    assert np.abs(step / far - 1).max() > 0.2


def test_norm_correction_is_seen_only_where_every_move_is_deployed() -> None:
    looked = subject()

    def mend(grids: tuple[Grid, ...]) -> nn.Module:
        """A pipeline that shifts the head's bias by a number that depends on the first site's grid."""
        model = deploy(looked.model, grids)
        with torch.no_grad():
            model.head.bias[0] += grids[0].bits
        return model

    base = ("int3", "int2", "int4")
    blind = MarginalKL(base, mend, tolerance=0).marginals(looked)
    seeing = MarginalKL(base, mend, exact=True).marginals(looked)
    real = divergence(looked.model, mend(tuple(map(Grid.parse, ("int8", "int2", "int4")))), looked.batches).value
    assert seeing.damage([3, 0, 2]) == pytest.approx(real, rel=1e-5)
    assert blind.damage([3, 0, 2]) != pytest.approx(real, rel=0.05)
    np.testing.assert_allclose(blind.change[1:], seeing.change[1:], rtol=1e-3, atol=1e-7)


def test_easy_choices_get_fewer_samples() -> None:
    looked = subject(batches=16)
    loose = MarginalKL(tolerance=0.5).marginals(looked)
    tight = MarginalKL(tolerance=0.0).marginals(looked)
    assert loose.samples.min() == looked.samples / 4
    assert tight.samples.min() == looked.samples
    assert loose.cost < tight.cost
    gap = np.abs(loose.change - tight.change)
    assert (gap <= 4 * np.hypot(loose.stderr, tight.stderr) + 1e-12).all()


def test_paired_errors_are_smaller_than_those_of_two_separate_figures() -> None:
    looked = subject(batches=8)
    found = MarginalKL(tolerance=0).marginals(looked)
    moved = found.change != 0
    assert np.median(found.stderr[moved]) < found.base_kl.stderr


def test_the_default_plan_keeps_its_budget_and_beats_uniform() -> None:
    looked = subject()
    cost, weights = stored_bits(looked), sum(site.weights for site in looked.sites)
    chosen = thrifty_columns(looked, 4.0)
    rows = np.arange(len(chosen))
    assert cost[rows, list(chosen)].sum() <= 4.0 * weights
    uniform = thrifty_columns(looked, float(cost[:, 1].sum()) / weights)
    assert looked.squared_errors[rows, list(uniform)].sum() <= looked.squared_errors[:, 1].sum() * 1.0001
    assert thrifty_columns(looked, 0.1) == (0, 0, 0), "a budget that cannot be met gives the smallest plan"
    assert thrifty_columns(looked, 100.0) == (3, 3, 3)


def test_a_plan_of_another_length_is_refused() -> None:
    with pytest.raises(gq.GeoquantError, match="2 grids for 3 sites"):
        MarginalKL(("int2", "int3")).measure(subject())


def test_the_caller_s_model_is_not_the_one_that_is_moved() -> None:
    looked = subject()
    kept = copy.deepcopy(looked.model.state_dict())
    deployed = deploy(looked.model, tuple(map(Grid.parse, ("int3", "int2", "int4"))))
    before = [get_weight(deployed, site).clone() for site in find_sites(deployed)]
    MarginalKL(("int3", "int2", "int4"), lambda grids: deployed).measure(looked)
    assert all(torch.equal(kept[name], value) for name, value in looked.model.state_dict().items())
    assert all(
        torch.equal(old, get_weight(deployed, site)) for old, site in zip(before, find_sites(deployed), strict=True)
    )
    set_weight_(deployed, find_sites(deployed)[0], before[0])
