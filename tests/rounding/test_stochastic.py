"""Stochastic rounding: unbiased inside the range, of known variance, and biased exactly where it clips."""

from __future__ import annotations

import math

import pytest
import torch

from geoquant.grids import Grid
from geoquant.rounding import RoundingContext, draw_neighbour, stochastic

DRAWS = 4000


@pytest.mark.parametrize(
    "name",
    ["int2:maxabs", "int3:affine:maxabs", "int4:narrow:maxabs", "binary:maxabs", "ternary:maxabs", "fp8_e5m2:maxabs",
     "fp4_e2m1:maxabs", "bf16"],
)  # fmt: skip
def test_the_mean_converges_to_the_weight(name: str) -> None:
    """One weight repeated many times: its mean lies within five standard errors, far closer than nearest."""
    grid = Grid.parse(name)
    values = torch.tensor([0.9, 0.3, 0.13, -0.07, -0.61])
    matrix = torch.cat([values.repeat_interleave(DRAWS), torch.tensor([1.5, -1.5])])[None]
    rounded = stochastic(matrix, grid, RoundingContext(seed=5)).dequantize()[0, :-2].reshape(5, DRAWS).double()
    error = (rounded.mean(1) - values).abs()
    assert (error <= 5 * rounded.std(1) / math.sqrt(DRAWS) + 1e-6).all()
    nearest = (grid.quantize(matrix).dequantize()[0, :-2].reshape(5, DRAWS).mean(1) - values).abs()
    assert error.mean() < 0.2 * nearest.mean(), "nearest rounding is the biased twin"


def test_variance_is_that_of_a_coin_between_the_neighbours() -> None:
    """At a fraction p between levels one step apart the variance is p(1 − p)·step², a quarter at most."""
    grid = Grid.parse("int4:maxabs:fp32")
    for fraction in (0.1, 0.5, 0.75):
        matrix = torch.full((1, 20_000), 2 + fraction)
        matrix[0, 0] = 7.5  # step 1
        rounded = stochastic(matrix, grid, RoundingContext(seed=1)).dequantize()[0, 1:]
        assert set(rounded.tolist()) == {2.0, 3.0}
        assert float(rounded.var()) == pytest.approx(fraction * (1 - fraction), rel=0.05)


def test_clipped_weights_go_to_the_end_level_always() -> None:
    """The negative twin of unbiasedness: beyond the end levels every draw is the end level."""
    levels = torch.tensor([-1.0, 0.0, 1.0])
    x = torch.tensor([1.2, 30.0, -1.0001])
    for draw in (0.0, 0.5, 0.999):
        assert draw_neighbour(x, levels, torch.full((3,), draw)).tolist() == [1.0, 1.0, -1.0]


def test_levels_stay_put_for_every_draw() -> None:
    levels = torch.tensor([-2.0, -0.5, 0.0, 3.0])
    for draw in (0.0, 1 - 2**-24):
        assert torch.equal(draw_neighbour(levels.float(), levels, torch.full((4,), draw)), levels.float())


def test_seeds_differ_and_repeat() -> None:
    grid, matrix = Grid.parse("int3"), torch.randn(4, 50)
    codes = [stochastic(matrix, grid, RoundingContext(seed=seed)).codes for seed in (1, 1, 2)]
    assert torch.equal(codes[0], codes[1])
    assert not torch.equal(codes[0], codes[2])


def test_sixteen_bit_levels_are_uneven_and_still_unbiased() -> None:
    matrix = torch.full((1, 20_000), 1 + 2**-9)  # a quarter of the gap above 1 in bf16 is 2^-9
    rounded = stochastic(matrix, Grid.parse("bf16"), RoundingContext(seed=2)).dequantize()
    assert set(rounded[0].tolist()) == {1.0, 1 + 2**-7}
    assert float((rounded - 1).mean()) == pytest.approx(2**-9, rel=0.05)
