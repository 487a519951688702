"""Lipschitz constants: closed forms attained and never exceeded, sampled values never above them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from geoquant.errors import ModelError
from geoquant.geometry.lipschitz import lipschitz, lipschitz_sampled

ACTIVATIONS = [
    nn.ReLU(),
    nn.LeakyReLU(0.2),
    nn.ELU(1.7),
    nn.CELU(2.0),
    nn.SELU(),
    nn.Tanh(),
    nn.Sigmoid(),
    nn.GELU(),
    nn.GELU("tanh"),
    nn.SiLU(),
    nn.Mish(),
    nn.Softplus(2.0),
    nn.LogSigmoid(),
    nn.Softsign(),
    nn.Tanhshrink(),
    nn.Hardsigmoid(),
    nn.Hardswish(),
    nn.Hardtanh(),
    nn.Softshrink(),
]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_the_steepest_slope_of_an_activation(activation):
    x = torch.linspace(-30, 30, 2_000_001, dtype=torch.float64, requires_grad=True)
    slopes = torch.autograd.grad(activation(x).sum(), x)[0].abs()
    constant = lipschitz(activation)
    assert constant.exact
    rounding = 1e-7 if isinstance(activation, nn.Hardsigmoid) else 1e-12  # torch holds its 1/6 in float32
    assert float(slopes.max()) <= constant.value + rounding
    assert float(slopes.max()) == pytest.approx(constant.value, rel=max(rounding, 1e-9))


def test_softmax_is_a_half_and_attains_it_at_two_equal_favourites():
    assert lipschitz(nn.Softmax(-1)).value == 0.5
    points = torch.tensor([[0.0, 0.0, -60.0], [1.0, 2.0, 3.0]]).double()
    assert lipschitz_sampled(lambda x: x.softmax(-1), points).value == pytest.approx(0.5, rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(2, 9), scale=st.floats(0.1, 20))
def test_softmax_never_exceeds_a_half(seed, size, scale):
    torch.manual_seed(seed)
    points = scale * torch.randn(4, size, dtype=torch.float64)
    assert lipschitz_sampled(lambda x: x.softmax(-1), points).value <= 0.5 + 1e-9


@pytest.mark.parametrize("norm", [nn.LayerNorm(6), nn.GroupNorm(2, 6), nn.RMSNorm(6), nn.LayerNorm(6, bias=False)])
def test_normalisations_are_bounded_on_their_domain_and_nearly_attain_it(norm):
    norm = norm.double()
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2.0)
    points = torch.randn(200, 6, dtype=torch.float64)
    groups = points.view(200, 2, 3) if isinstance(norm, nn.GroupNorm) else points.view(200, 1, 6)
    spread = groups.square().mean(-1) if isinstance(norm, nn.RMSNorm) else groups.var(-1, correction=0)
    bound = lipschitz(norm, smallest_variance=float(spread.min())).value
    found = lipschitz_sampled(norm, points).value
    assert found <= bound * (1 + 1e-9)
    assert found > 0.5 * bound
    assert lipschitz(norm).value > bound  # with no domain stated, only ε bounds it


def test_batch_norm_in_eval_mode_is_linear():
    norm = nn.BatchNorm1d(3).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -3.0, 0.5]))
    norm.running_var.copy_(torch.tensor([4.0, 1.0, 0.01]))
    assert lipschitz(norm).value == pytest.approx(0.5 / math.sqrt(0.01 + norm.eps))
    assert lipschitz_sampled(norm, torch.randn(2, 3).double()).value == pytest.approx(lipschitz(norm).value, rel=1e-6)
    assert norm.training
    with pytest.raises(ModelError, match="couples samples"):
        lipschitz(nn.BatchNorm1d(3, track_running_stats=False))


def test_max_pooling_attains_its_bound_where_one_pixel_rules_all_its_windows():
    pool = nn.MaxPool2d(3, stride=1)
    image = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    image[0, 0, 2, 2] = 1.0
    assert lipschitz(pool).value == 3.0
    assert lipschitz_sampled(pool, image).value == pytest.approx(3.0)
    apart = lipschitz(nn.MaxPool2d(2))
    assert apart.exact
    assert apart.value == 1.0


def test_pooling_by_means_shrinks():
    assert lipschitz(nn.AvgPool2d(2), (3, 4, 4)).value == pytest.approx(0.5)
    assert lipschitz(nn.AdaptiveAvgPool2d(1), (2, 3, 3)).value == pytest.approx(1 / 3)


def test_a_chain_is_bounded_by_the_product_and_the_product_is_not_the_constant():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 4), nn.GELU()).double()
    bound = lipschitz(model, (1, 5, 5))
    assert not bound.exact
    sampled = lipschitz_sampled(model, torch.randn(20, 1, 5, 5).double())
    assert sampled.value < 0.9 * bound.value
    assert sampled.note == "a lower estimate"


def test_sampled_differences_never_beat_the_closed_form():
    layer = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    bound = lipschitz(layer).value
    x, y = torch.randn(2, 500, 4, dtype=torch.float64)
    with torch.no_grad():
        ratios = (layer(x) - layer(y)).norm(dim=1) / (x - y).norm(dim=1)
    assert float(ratios.max()) <= bound


def test_attention_has_no_closed_form_and_no_constant():
    attention = nn.MultiheadAttention(4, 1, batch_first=True).double()
    with pytest.raises(ModelError, match="lipschitz_sampled"):
        lipschitz(attention)

    def attend(x):
        return attention(x, x, x, need_weights=False)[0]

    points = torch.randn(6, 5, 4, dtype=torch.float64)
    small, large = (lipschitz_sampled(attend, scale * points).value for scale in (1.0, 30.0))
    assert large > 3 * small  # grows with the domain: not Lipschitz on all inputs


def test_a_map_that_merges_points_is_refused():
    with pytest.raises(ModelError, match="one row per point"):
        lipschitz_sampled(lambda x: x.sum(), torch.randn(3, 2))
