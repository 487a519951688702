"""Ranges of activations against all activations kept in memory."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from geoquant.errors import DataError, GeoquantError, LayerNameError
from geoquant.geometry.histogram import Counter
from geoquant.geometry.ranges import activation_ranges


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    scale=st.floats(1e-6, 1e6),
    shift=st.floats(-3, 3),
    share=st.floats(0.0, 1.0),
)
def test_quantiles_are_right_to_their_relative_error(seed, scale, shift, share):
    torch.manual_seed(seed)
    values = scale * (torch.randn(3, 500) + shift)
    counter = Counter()
    for row in values:
        counter.add(row)
    exact = torch.quantile(values.flatten(), share, interpolation="lower")
    above = torch.quantile(values.flatten(), min(share + 2 / 1500, 1.0), interpolation="higher")
    below = torch.quantile(values.flatten(), max(share - 2 / 1500, 0.0), interpolation="lower")
    slack = 0.008 * float(exact.abs().maximum(above.abs()).maximum(below.abs()))
    assert float(below) - slack <= counter.histogram().quantile(share) <= float(above) + slack


def test_extremes_norms_and_moments_over_all_batches():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    batches = [torch.randn(size, 3) * (index + 1) for index, size in enumerate((5, 8))]
    with torch.no_grad():
        before = torch.cat([model[0](x) for x in batches])
    found = activation_ranges(model, batches, ["1"])["1"]  # read before the in-place layer overwrites it
    assert found.lowest == float(before.min()) < 0
    assert found.highest == float(before.max())
    assert found.mean == pytest.approx(float(before.double().mean()))
    assert found.rms == pytest.approx(float(before.double().square().mean().sqrt()))
    assert found.largest_norm == pytest.approx(float(before.norm(dim=1).max()), rel=1e-6)
    assert found.count == before.numel()
    outputs = activation_ranges(model, batches, ["1"], side="outputs")["1"]
    assert outputs.lowest == 0.0


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), samples=st.integers(2, 12), shift=st.floats(-5, 5))
def test_the_diameter_is_bracketed(seed, samples, shift):
    torch.manual_seed(seed)
    x = torch.randn(samples, 4) + shift
    low, high = activation_ranges(nn.Identity(), [x[:1], x[1:]])[""].diameter
    truth = float(torch.cdist(x.double(), x.double()).max())
    assert low <= truth * (1 + 1e-6)
    assert truth <= high * (1 + 1e-6)
    assert high <= 2 * low * (1 + 1e-6)


def test_percentiles_leave_out_both_tails():
    x = torch.linspace(-1, 3, 100_001).view(1, -1)
    low, high = activation_ranges(nn.Identity(), [x])[""].percentile(90.0)
    assert low == pytest.approx(-0.8, abs=0.01)
    assert high == pytest.approx(2.8, abs=0.03)
    assert activation_ranges(nn.Identity(), [x])[""].percentile(100.0) == (-1.0, 3.0)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_clip_of_least_squared_error_on_outliers(bits, symmetric):
    torch.manual_seed(bits)
    values = torch.randn(40_000)
    values[:4] = torch.tensor([40.0, -9.0, 30.0, 15.0])
    found = activation_ranges(nn.Identity(), [values.view(1, -1)])[""]
    low, high = found.mse_clip(bits, symmetric=symmetric)

    def error(low, high):
        levels = 2**bits - symmetric
        step = (high - low) / (levels - 1)
        zero = round(-low / step)
        codes = torch.clamp(torch.round(values.double() / step) + zero, 0, levels - 1)
        return float((values.double() - (codes - zero) * step).square().mean())

    reached = error(low, high)
    grid = torch.logspace(-1, math.log10(40), 60).tolist()
    lows = [None] if symmetric else torch.logspace(-1, math.log10(9), 30).tolist()
    best = min(error(-(top if bottom is None else bottom), top) for top in grid for bottom in lows)
    assert reached <= best * 1.02
    assert reached < error(found.lowest, found.highest) / 2 or bits == 8


def test_gaussian_clips_reproduce_the_textbook():
    torch.manual_seed(0)
    found = activation_ranges(nn.Identity(), [torch.randn(1, 200_000)])[""]
    low, high = found.mse_clip(4, symmetric=True)
    assert low == -high

    def error(step):  # 15 levels, by Gaussian integrals
        edges = (torch.arange(-7, 7, dtype=torch.float64) + 0.5) * step
        cdf = torch.cat([torch.zeros(1), torch.special.ndtr(edges), torch.ones(1)])
        pdf = torch.cat([torch.zeros(1), (-edges.square() / 2).exp() / math.sqrt(2 * math.pi), torch.zeros(1)])
        level = torch.arange(-7, 8, dtype=torch.float64) * step
        return float(1 - 2 * (level * (pdf[:-1] - pdf[1:])).sum() + (level.square() * cdf.diff()).sum())

    best = min((0.25 + 0.0005 * index for index in range(400)), key=error)
    assert high == pytest.approx(7 * best, rel=0.03)
    assert error(high / 7) <= error(best) * 1.001


def test_a_constant_activation_has_no_width():
    found = activation_ranges(nn.Identity(), [torch.full((2, 3), 2.5)])[""]
    assert found.lowest == found.highest == 2.5
    assert found.percentile(99.0) == (2.5, 2.5)
    assert found.diameter == (0.0, 0.0)


def test_patterns_tokens_and_bad_values():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2))
    tokens = torch.tensor([[0, 1], [2, 3]])
    assert set(activation_ranges(model, [tokens])) == {"1"}  # the embedding takes integers
    assert set(activation_ranges(model, [tokens], ["re:[01]"], side="outputs")) == {"0", "1"}
    with pytest.raises(LayerNameError, match="never called"):
        activation_ranges(model, [tokens], ["0"])
    with pytest.raises(LayerNameError):
        activation_ranges(model, [tokens], ["nope"])
    with pytest.raises(DataError, match="no batch"):
        activation_ranges(model, [])
    with pytest.raises(DataError, match="NaN or Inf"):
        activation_ranges(nn.Identity(), [torch.tensor([[math.nan]])])
    with pytest.raises(GeoquantError, match="between 0 and 100"):
        activation_ranges(nn.Identity(), [torch.ones(1, 1)])[""].percentile(0.0)
