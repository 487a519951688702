"""Rounding in training: on the grid, unbiased where it says so, against slow float64 references."""

from __future__ import annotations

import pytest
import torch

from geoquant.errors import GridError
from geoquant.grids.formats import find_format
from geoquant.training.noise import CHUNK, POOL, Noise
from geoquant.training.numerics import level, round_rows, round_tensor

INTEGERS = ("int2", "int3", "int4", "int5", "int6", "int7", "int8", "int16")
FLOATS = ("fp8_e4m3", "fp8_e5m2", "fp16", "bf16")


def skewed(count: int = 4000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(count, generator=generator) ** 3


@pytest.mark.parametrize("name", INTEGERS + FLOATS)
@pytest.mark.parametrize("how", ["nearest", "stochastic"])
def test_codes_are_levels_and_never_further_than_a_step(name: str, how: str):
    x = skewed()
    low = round_tensor(x, level(name), how, Noise(0))
    levels = find_format(name).levels
    assert torch.isin(low.codes.double(), levels).all()
    codes, exact = low.codes.double(), x.double() / float(low.scale)
    above = torch.bucketize(exact, levels).clamp(1, len(levels) - 1)
    gap = levels[above] - levels[above - 1]
    assert ((codes - exact).abs() <= gap * (0.5 + 1e-3 if how == "nearest" else 1 + 1e-3)).all()


@pytest.mark.parametrize("name", ["int2", "int4", "int8", "fp8_e4m3", "fp8_e5m2", "fp16", "bf16"])
def test_stochastic_rounding_is_unbiased_everywhere(name: str):
    values = torch.tensor([1.0, -0.9, 0.31, 0.11, -0.03, 0.004, 0.0])
    x = values.repeat(30_000, 1)
    noise = Noise(3)
    rounded = round_tensor(x, level(name), "stochastic", noise).dequantize().double()
    spread = rounded.std(0) / 30_000**0.5
    assert ((rounded.mean(0) - values.double()).abs() <= 5 * spread + 1e-6).all()
    nearest = round_tensor(x, level(name), "nearest", noise).dequantize().double()
    assert (nearest.std(0) == 0).all()  # the twin: it does not average, so it is biased wherever it is wrong
    assert (nearest.mean(0) - values).abs().max() > 1e-6


def test_a_tensor_without_negatives_gets_twice_the_levels():
    x = torch.linspace(0, 15, 16)
    unsigned = round_tensor(x * 2, level("int5"), "nearest", Noise(0)).codes
    assert unsigned.unique().numel() == 16
    assert round_tensor(torch.cat([x, -x]), level("int4"), "nearest", Noise(0)).codes.unique().numel() == 15
    assert float(round_tensor(x, level("int4"), "nearest", Noise(0)).codes.max()) == 15


@pytest.mark.parametrize("name", ["int4", "fp8_e4m3", "fp16"])
def test_memory_order_does_not_matter_to_nearest(name: str):
    x = torch.randn(2, 3, 5, 4)
    plain = round_tensor(x, level(name), "nearest", Noise(0)).dequantize()
    last = round_tensor(x.to(memory_format=torch.channels_last), level(name), "nearest", Noise(0)).dequantize()
    strided = round_tensor(x.repeat(2, 1, 1, 1)[::2], level(name), "nearest", Noise(0))
    assert torch.equal(plain, last)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert strided.codes.shape == x.shape


def test_rows_have_scales_of_their_own():
    x = torch.stack([torch.linspace(-1, 1, 9), torch.linspace(-100, 100, 9)])
    rounded = round_rows(x, level("int3"), "nearest", Noise(0))
    assert torch.allclose(rounded[1], 100 * rounded[0])
    together = round_tensor(x, level("int3"), "nearest", Noise(0)).dequantize()
    assert together[0].abs().max() == 0  # the twin: under one scale the small row vanishes


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["int8", "fp8_e4m3", "fp16"])
def test_what_is_not_finite_stays_visible(bad: float, name: str):
    x = torch.tensor([1.0, bad, 2.0])
    assert not torch.isfinite(round_tensor(x, level(name), "stochastic", Noise(0)).dequantize()).all()


def test_fp16_overflows_and_bf16_does_not():
    x = torch.tensor([1.0, 1e6])
    for how in ("nearest", "stochastic"):
        assert torch.isinf(round_tensor(x, level("fp16"), how, Noise(0)).codes[1])
        assert torch.isfinite(round_tensor(x, level("bf16"), how, Noise(0)).codes).all()


def test_zeros_and_nothing_survive():
    for name in (*INTEGERS, *FLOATS):
        for how in ("nearest", "stochastic"):
            assert torch.equal(
                round_tensor(torch.zeros(3, 2), level(name), how, Noise(0)).dequantize(), torch.zeros(3, 2)
            )
            assert torch.equal(round_rows(torch.zeros(3, 2), level(name), how, Noise(0)), torch.zeros(3, 2))
    assert round_tensor(torch.zeros(0, 2), level("int4"), "nearest", Noise(0)).codes.shape == (0, 2)


def test_noise_is_a_function_of_seed_and_counter_and_uniform():
    one, other = Noise(1), Noise(1)
    first = torch.cat(list(one.pieces(3 * CHUNK, torch.device("cpu"))))
    assert torch.equal(first, torch.cat(list(other.pieces(3 * CHUNK, torch.device("cpu")))))
    assert not torch.equal(first, torch.cat(list(one.pieces(3 * CHUNK, torch.device("cpu")))))
    assert one.counter == 6
    assert not torch.equal(first[:10], next(iter(Noise(2).pieces(10, torch.device("cpu")))))
    many = torch.cat(list(Noise(0).pieces(2 * POOL, torch.device("cpu"))))
    assert 0 < float(many.min()) < float(many.max()) < 1
    counts = torch.histc(many, 16, 0, 1)
    assert (counts / many.numel() - 1 / 16).abs().max() < 1e-3


def test_unknown_levels_are_refused():
    for name in ("ternary", "fp4_e2m1", "int9"):
        with pytest.raises(GridError):
            level(name)
