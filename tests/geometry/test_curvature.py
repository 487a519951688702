"""κ = ½ sup‖D²f(h, h)‖: the oracles, their negative twins, and what is said of nets with kinks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from geoquant.errors import DataError, GeoquantError, ModelError
from geoquant.geometry.curvature import (
    KNOWN_CURVATURES,
    compose_curvature,
    curvature,
    curvature_sampled,
    network_curvature,
    quadratic_curvature,
)
from geoquant.geometry.energy import mean_rademacher_stretch, output_energy_sensitivity
from geoquant.geometry.lanczos import extreme_eigenvalues
from geoquant.geometry.lipschitz import lipschitz
from geoquant.geometry.operators import spectral_norm


def _dense_curvature(function, x: torch.Tensor, directions: int = 20_000) -> float:
    """½ max over many unit h of ‖D²f(h, h)‖, from the whole second derivative."""
    second = torch.stack(
        [torch.autograd.functional.hessian(lambda p, i=i: function(p)[i], x) for i in range(len(function(x)))]
    )
    h = torch.nn.functional.normalize(torch.randn(directions, len(x), dtype=torch.float64), dim=1)
    return float(torch.einsum("oij,ni,nj->no", second, h, h).norm(dim=1).max()) / 2


def test_a_quadratic_has_half_the_norm_of_its_matrix():
    matrix = torch.randn(6, 6, dtype=torch.float64)
    symmetric = (matrix + matrix.T) / 2
    truth = float(torch.linalg.eigvalsh(symmetric).abs().max()) / 2
    assert quadratic_curvature(matrix).value == pytest.approx(truth, rel=1e-12)
    found = curvature_sampled(lambda x: ((x @ symmetric) * x).sum(1) / 2, torch.randn(1, 6).double(), tolerance=1e-8)
    assert found.value == pytest.approx(truth, rel=1e-8)


@pytest.mark.parametrize("size", [2, 3, 8])
def test_log_sum_exp_is_a_quarter(size):
    worst = torch.full((1, size), -60.0, dtype=torch.float64)
    worst[0, :2] = 0.0
    assert curvature_sampled(lambda x: x.logsumexp(1), worst).value == pytest.approx(0.25, rel=1e-6)
    others = 2 * torch.randn(20, size, dtype=torch.float64)
    assert curvature_sampled(lambda x: x.logsumexp(1), others).value <= KNOWN_CURVATURES["log-sum-exp"] + 1e-9


@pytest.mark.parametrize("size", [2, 3, 10])
def test_softmax_reaches_its_constant_and_never_exceeds_it_wherever_it_stands(size):
    known = curvature(nn.Softmax(-1))
    assert known.exact
    assert known.value == pytest.approx(0.136083, abs=1e-6)
    worst = torch.full((1, size), -60.0, dtype=torch.float64)
    worst[0, 0], worst[0, 1] = math.log((1 + 1 / math.sqrt(3)) / (1 - 1 / math.sqrt(3))), 0.0
    assert curvature_sampled(lambda x: x.softmax(-1), worst).value == pytest.approx(known.value, rel=1e-6)
    shifted = curvature_sampled(lambda x: x.softmax(-1), worst + 50)  # e^{2 max x} would be e^100
    assert shifted.value == pytest.approx(known.value, rel=1e-6)
    others = 3 * torch.randn(30, size, dtype=torch.float64)
    assert curvature_sampled(lambda x: x.softmax(-1), others).value <= known.value + 1e-9


SMOOTH = [nn.Sigmoid(), nn.Tanh(), nn.GELU(), nn.SiLU(), nn.Softplus(3.0), nn.Mish(), nn.LogSigmoid(), nn.Tanhshrink()]


@pytest.mark.parametrize("activation", SMOOTH, ids=str)
def test_smooth_activations_by_their_largest_second_derivative(activation):
    x = torch.linspace(-6, 6, 1_200_001, dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.grad(activation(x).sum(), x, create_graph=True)[0]
    bend = torch.autograd.grad(slope.sum(), x)[0].abs()
    known = curvature(activation)
    assert known.exact
    assert float(bend.max()) / 2 == pytest.approx(known.value, rel=1e-8)
    place = x.detach()[bend.argmax()]
    point = torch.stack([place, place + 3.0]).view(1, 2)
    assert curvature_sampled(activation, point).value == pytest.approx(known.value, rel=1e-3)


def test_alternation_finds_what_a_dense_search_finds():
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    x = torch.randn(3, 3, dtype=torch.float64)
    found = curvature_sampled(model, x, starts=4, rounds=30, tolerance=1e-7).value
    dense = max(_dense_curvature(model, row) for row in x)
    assert found == pytest.approx(dense, rel=5e-3)
    assert found >= dense * (1 - 1e-6)


def test_affine_layers_have_none_though_their_norm_and_condition_number_are_large():
    layer = nn.Linear(3, 3).double()
    with torch.no_grad():
        layer.weight.copy_(torch.diag(torch.tensor([100.0, 1.0, 0.01])))
    assert curvature(layer).value == 0
    assert curvature_sampled(layer, torch.randn(4, 3).double()).value == 0
    assert spectral_norm(layer).value == pytest.approx(100.0)


def test_a_chain_is_bounded_by_the_rule_of_composition():
    model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 3), nn.Softmax(-1)).double()
    bound = curvature(model)
    assert not bound.exact
    sampled = curvature_sampled(model, torch.randn(30, 3).double()).value
    assert 0 < sampled <= bound.value
    first, gelu, second, soft = model
    by_hand = compose_curvature(0.0, lipschitz(first).value, curvature(gelu).value, lipschitz(gelu).value)
    by_hand = lipschitz(second).value * by_hand
    slope = lipschitz(first).value * lipschitz(gelu).value * lipschitz(second).value
    by_hand = compose_curvature(by_hand, slope, curvature(soft).value, 0.5)
    assert bound.value == pytest.approx(by_hand, rel=1e-12)


def test_a_relu_net_is_zero_almost_everywhere_and_says_so():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(27, 3)).train()
    batches = [(torch.randn(10, 1, 5, 5), torch.zeros(10))]
    found = network_curvature(model, batches, beta=5.0, points=4)
    assert found.value.exact
    assert found.value.value == 0
    assert "no second derivative at the kinks" in found.value.note
    assert found.smoothed is not None
    assert found.smoothed.value > 0
    assert found.kinks is not None
    assert set(found.kinks.layers) == {"1"}
    assert model.training


def test_the_smoothed_value_is_that_of_its_softplus_and_grows_with_beta():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU()).double()
    with torch.no_grad():
        model[0].weight.fill_(3.0)
    at_the_kink = [torch.zeros(2, 1, dtype=torch.float64)]
    for beta in (1.0, 10.0, 100.0):
        found = network_curvature(model, at_the_kink, beta=beta).smoothed
        assert found is not None
        assert found.value == pytest.approx(beta * 9 / 8, rel=1e-9)


def test_a_smooth_net_is_sampled_and_has_no_kinks():
    model = nn.Sequential(nn.Linear(2, 4), nn.GELU(), nn.Linear(4, 1))
    found = network_curvature(model, [torch.randn(6, 2)])
    assert found.kinks is None
    assert found.smoothed is None
    assert found.value.value > 0
    assert "lower estimate" in found.value.note


def test_tokens_have_no_curvature():
    with pytest.raises(DataError, match="floating-point input"):
        network_curvature(nn.Embedding(3, 2), [torch.tensor([[0, 1]])])


def test_no_formula_says_what_to_do():
    with pytest.raises(ModelError, match="curvature_sampled"):
        curvature(nn.MultiheadAttention(2, 1))
    with pytest.raises(GeoquantError, match="square"):
        quadratic_curvature(torch.zeros(2, 3))


def test_output_energy_of_a_linear_map_is_twice_its_squared_norm():
    layer = nn.Linear(5, 4, bias=False).double()
    sigma = float(torch.linalg.svdvals(layer.weight.detach())[0])
    found = output_energy_sensitivity(layer, torch.randn(3, 5).double(), tolerance=1e-8)
    assert found.value == pytest.approx(2 * sigma**2, rel=1e-9)
    assert curvature(layer).value == 0  # the twin: it is not the curvature


def test_output_energy_of_a_net_against_the_dense_hessian():
    model = nn.Sequential(nn.Linear(3, 5), nn.SiLU(), nn.Linear(5, 2)).double()
    points = torch.randn(4, 3, dtype=torch.float64)
    dense = [torch.autograd.functional.hessian(lambda p: model(p).square().sum(), row) for row in points]
    truth = max(float(torch.linalg.eigvalsh(matrix).abs().max()) for matrix in dense)
    assert output_energy_sensitivity(model, points, tolerance=1e-8).value == pytest.approx(truth, rel=1e-7)


def test_the_mean_stretch_of_sign_vectors_is_not_the_largest_eigenvalue():
    spectrum = torch.cat([torch.tensor([100.0]), torch.ones(49)]).double()
    diagonal = mean_rademacher_stretch(lambda rows: rows * spectrum, 50)
    assert diagonal.value == pytest.approx(14.18, abs=0.01)
    basis = torch.linalg.qr(torch.randn(50, 50, dtype=torch.float64))[0]
    matrix = basis * spectrum @ basis.T
    turned = mean_rademacher_stretch(lambda rows: rows @ matrix, 50, probes=4000)
    assert turned.value == pytest.approx(11.4, abs=0.5)
    start = torch.randn(1, 50, dtype=torch.float64)
    truth = extreme_eigenvalues(lambda rows: rows @ matrix, start, tolerance=1e-9)
    assert truth.values.item() == pytest.approx(100.0, rel=1e-9)
