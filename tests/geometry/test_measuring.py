"""All measures together: known answers, what cannot be measured is named, and a stored profile keeps every number."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from torch import Tensor, nn

from geoquant.geometry import geometry_cost, hessian_traces, measure_geometry
from geoquant.models import find_sites, model_fingerprint
from geoquant.sensitivity import Profile, profile
from geoquant.sensitivity.profiling import geometry_document
from nets import small_batches, small_net


def linear_softmax() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 4, bias=False)).double(), torch.randn(20, 3).double()


def known_hessian(net: nn.Module, x: Tensor) -> Tensor:
    """The mean of (diag p − ppᵀ) ⊗ xxᵀ, the whole Hessian of a linear softmax net."""
    p = net(x).detach().softmax(-1)
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return sum(torch.kron(a, b[:, None] * b[None, :]) for a, b in zip(inner, x, strict=True)) / len(x)


@pytest.mark.parametrize("labelled", [True, False])
def test_a_linear_softmax_net_has_its_known_geometry(labelled: bool) -> None:
    net, x = linear_softmax()
    labels = torch.randint(0, 4, (20,))
    batches = [(x[:12], labels[:12]), (x[12:], labels[12:])] if labelled else [x[:12], x[12:]]
    found = measure_geometry(net, batches, find_sites(net))
    hessian = known_hessian(net, x)
    values = torch.linalg.eigvalsh(hessian).flip(0)
    site = found.site("0")
    assert found.loss == ("cross_entropy" if labelled else "kl")
    assert site.gauss_newton_trace is not None
    assert site.gauss_newton_trace.exact
    assert site.gauss_newton_trace.value == pytest.approx(float(hessian.trace()), rel=1e-9)
    assert site.hessian_trace is not None
    assert site.hessian_trace.value == site.gauss_newton_trace.value
    assert site.trace_per_weight is not None
    assert site.trace_per_weight.value == pytest.approx(float(hessian.trace()) / 12, rel=1e-9)
    singular = torch.linalg.svdvals(net[0].weight.detach())
    assert site.spectral_norm is not None
    assert site.condition_number is not None
    assert site.spectral_norm.value == pytest.approx(float(singular[0]))
    assert site.condition_number.value == pytest.approx(float(singular[0] / singular[-1]))
    assert site.inputs is not None
    assert (site.inputs.lowest, site.inputs.highest) == (float(x.min()), float(x.max()))
    assert found.spectrum is not None
    assert [each.value for each in found.spectrum.top] == pytest.approx(values[:3].tolist(), rel=1e-2)
    trace = found.spectrum.density().moment(1)
    assert abs(trace.value - float(hessian.trace())) <= 5 * trace.stderr
    assert found.curvature is not None
    assert found.curvature.value == 0
    assert [each.measure for each in found.missing] == ["kink density"]


def test_a_relu_net_has_exact_traces_and_kinks_and_is_left_alone() -> None:
    net, batches = small_net().train(), small_batches()
    before = model_fingerprint(net)
    found = measure_geometry(net, batches, find_sites(net))
    assert model_fingerprint(net) == before
    assert net.training
    assert all(parameter.grad is None for parameter in net.parameters())
    assert found.missing == ()
    assert found.kinks is not None
    assert 0 < found.kinks.overall.value < 1
    assert found.curvature is not None
    assert found.curvature.value == 0
    assert found.smoothed_curvature is not None
    assert found.smoothed_curvature.value > 0
    truth = hessian_traces(net, batches, find_sites(net))
    for site in found.sites:
        assert site.hessian_trace == truth[site.site]
        assert site.gauss_newton_trace is not None
        assert site.gauss_newton_trace.value == site.hessian_trace.value
    assert measure_geometry(net, batches, find_sites(net)) == found


def test_a_smooth_net_has_a_hessian_of_its_own() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    batches = [(torch.randn(32, 4).double(), torch.randint(0, 3, (32,)))]
    first, last = measure_geometry(net, batches, find_sites(net), probes=4).sites
    assert first.gauss_newton_trace is not None
    assert first.hessian_trace is not None
    assert first.gauss_newton_trace.exact
    assert not first.hessian_trace.exact
    assert first.hessian_trace.stderr > 0
    assert last.hessian_trace is not None
    assert last.hessian_trace.exact  # the outputs are linear in the last layer


@pytest.mark.parametrize("smooth", [False, True])
def test_the_cost_is_said_before_and_meant(smooth: bool) -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh() if smooth else nn.ReLU(), nn.Linear(8, 5))
    batches = [(torch.randn(64, 6), torch.randint(0, 5, (64,))) for _ in range(8)]
    said = geometry_cost(net, batches, find_sites(net))
    assert measure_geometry(net, batches, find_sites(net)).cost == pytest.approx(said, rel=0.5)


class Odd(nn.Module):
    """Counts tokens, and calls one weight without its layer: not everything can be measured on it."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.loose = nn.Embedding(5, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.table(x).mean(1), self.loose.weight)


def test_what_cannot_be_measured_is_named_and_the_rest_goes_on() -> None:
    torch.manual_seed(0)
    net = Odd()
    with torch.no_grad():
        net.loose.weight[1] = net.loose.weight[0]  # loses rank
    tokens = torch.randint(0, 5, (6, 7))
    wrong = torch.full((6,), 99)  # labels beyond the classes
    found = measure_geometry(net, [(tokens, wrong)], find_sites(net))
    assert found.loss == "kl"
    named = {(each.measure, each.site) for each in found.missing}
    assert ("loss of the labels", "") in named
    assert ("curvature in the input", "") in named
    assert ("kink density", "") in named
    assert {("input range", "table"), ("input range", "loose")} <= named
    assert all(each.reason for each in found.missing)
    assert found.site("loose").inputs is None
    assert found.site("table").gauss_newton_trace is not None
    assert found.site("loose").condition_number.value == math.inf


def test_a_profile_keeps_the_geometry_and_reads_files_without(tmp_path) -> None:
    net, batches = small_net(), small_batches(1)
    net = copy.deepcopy(net)
    with torch.no_grad():
        net.block.weight[1] = net.block.weight[0]  # an infinite condition number must survive JSON
    measured = profile(net, batches, grids=["int4"], predictors=["weight_error"], geometry=True)
    assert measured.geometry is not None
    assert measured.geometry.site("block").condition_number.value == math.inf
    measured.save(tmp_path)
    assert Profile.load(tmp_path) == measured
    json.dumps(geometry_document(measured.geometry), allow_nan=False)
    plain = profile(net, batches, grids=["int4"], predictors=["weight_error"])
    assert plain.geometry is None
    assert plain.tables == measured.tables


def test_files_of_version_one_are_read(tmp_path) -> None:
    from geoquant import storage

    plain = profile(small_net(), small_batches(1), grids=["int4"], predictors=["weight_error"])
    _, content = storage.read_document(plain.save(tmp_path), "profile", 99)
    del content["geometry"]
    storage.write_document(tmp_path / "old.json", "profile", 1, content)
    assert Profile.load(tmp_path / "old.json") == plain
