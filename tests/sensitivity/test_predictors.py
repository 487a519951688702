"""Predictors: the laws of the protocol, and each one's own truth."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import geoquant as gq
from geoquant.evaluation import divergence
from geoquant.plan import uniform_plan
from geoquant.quantize import quantize
from geoquant.sensitivity import PREDICTORS, HawqV2, Subject, make_subject
from nets import small_batches, small_net
from sensitivity.contract import check_predictor


def subject(seed: int = 0) -> Subject:
    return make_subject(small_net(), small_batches(), grids=["int2", "int4:affine", "int8"], seed=seed)


@pytest.mark.parametrize("name", PREDICTORS.names())
def test_laws(name: str) -> None:
    check_predictor(PREDICTORS[name], subject())


def test_weight_error_is_the_squared_distance() -> None:
    looked = subject()
    table = PREDICTORS["weight_error"].measure(looked)
    for name, weight in (("stem", looked.model.stem.weight), ("head", looked.model.head.weight)):
        rounded = quantize(looked.model, uniform_plan(looked.model, "fp32", {name: "int2"}))
        moved = dict(rounded.named_parameters())[f"{name}.weight"]
        assert table.row(name)[0] == pytest.approx(float((moved - weight).detach().double().square().sum()), rel=1e-6)


def test_one_layer_kl_equals_the_divergence_of_the_net_with_that_layer_rounded() -> None:
    looked = subject()
    table = PREDICTORS["one_layer_kl"].measure(looked)
    for name in ("stem", "block", "head"):
        rounded = quantize(looked.model, uniform_plan(looked.model, "fp32", {name: "int2"}))
        measured = divergence(looked.model, rounded, looked.batches)
        assert table.row(name)[0] == pytest.approx(measured.value, rel=1e-5)
        assert table.stderr[table.sites.index(name)][0] == pytest.approx(measured.stderr, rel=1e-4)


def test_one_layer_kl_standard_error_shrinks_with_samples() -> None:
    few = make_subject(small_net(), small_batches(2), grids=["int2"])
    many = make_subject(small_net(), small_batches(32), grids=["int2"])
    ratio = np.array(PREDICTORS["one_layer_kl"].measure(few).stderr) / np.array(
        PREDICTORS["one_layer_kl"].measure(many).stderr
    )
    assert 2 < np.median(ratio) < 8  # 16 times the samples: about 4


def test_condition_number_of_a_known_matrix() -> None:
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[8.0, 0.0], [0.0, 2.0]]))
    looked = make_subject(nn.Sequential(layer), [torch.randn(4, 2)], grids=["int2", "int4"])
    assert PREDICTORS["condition_number"].measure(looked).damage == ((4 / 4, 4 / 16),)


def test_hawq_is_the_trace_of_the_dense_hessian_over_n_times_the_squared_error() -> None:
    net = nn.Sequential(nn.Linear(3, 4, bias=False)).double()
    x, y = torch.randn(32, 3, dtype=torch.float64), torch.randint(0, 4, (32,))
    batches = [(x, y)]

    def loss(weight: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(x @ weight.T, y)

    hessian = torch.func.hessian(loss)(net[0].weight.detach()).reshape(12, 12)
    looked = make_subject(net, batches, grids=["int2"])
    table = HawqV2().measure(looked)
    wanted = float(hessian.trace()) / 12 * looked.squared_errors[0, 0]
    assert table.damage[0][0] == pytest.approx(wanted, rel=1e-6)


def test_profiling_leaves_the_model_alone_and_is_deterministic() -> None:
    net = small_net()
    before = copy.deepcopy(net.state_dict())
    one, two = (gq.profile(net, small_batches(), predictors=PREDICTORS.names(), seed=3) for _ in range(2))
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert one == two


def test_profile_survives_the_disk(tmp_path: object) -> None:
    measured = gq.profile(small_net(), small_batches(), grids=["int2", "int8"])
    measured.save(str(tmp_path))
    assert gq.Profile.load(str(tmp_path)) == measured


def test_bad_input_is_refused_before_any_work() -> None:
    net = small_net()
    with pytest.raises(gq.GeoquantError, match=r"no batch|empty"):
        gq.profile(net, [])
    with pytest.raises(gq.GeoquantError, match=r"NaN|Inf|finite"):
        gq.profile(net, [torch.full((4, 1, 8, 8), float("nan"))])
    with pytest.raises(gq.GeoquantError, match="bits=99"):
        gq.profile(net, small_batches(), grids=["int99"])
    with pytest.raises(gq.GeoquantError, match="weight_eror"):
        gq.profile(net, small_batches(), predictors=["weight_eror"])
    with pytest.raises(gq.GeoquantError, match="nothing"):
        gq.profile(net, small_batches(), only=["nothing"])
    with torch.no_grad():
        net.head.weight[0, 0] = float("inf")
    with pytest.raises(gq.GeoquantError, match=r"head\.weight"):
        gq.profile(net, small_batches())


def test_float_model_that_overflows_is_refused() -> None:
    net = small_net()
    with torch.no_grad():
        net.norm.weight.fill_(1e38)
        net.block.weight.mul_(1e3)
    with pytest.raises(gq.GeoquantError, match="NaN or Inf on the first calibration batch"):
        gq.profile(net, small_batches())
