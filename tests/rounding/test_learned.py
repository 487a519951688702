"""Roundings that look at inputs lower the layer's output error; HQQ lowers its own measure; each has a twin."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from geoquant.grids import Grid
from geoquant.rounding import (
    ROUNDINGS,
    AdaRound,
    Descent,
    Gptq,
    Hqq,
    RoundingContext,
    SignRound,
    output_error,
    uses_inputs,
)
from geoquant.rounding.learned import gate, neighbours
from rounding.test_gptq import correlated

GRIDS = [
    "int2:mse-signed",
    "int3",
    "int4:affine:group8",
    "int3:narrow:tensor:maxabs",
    "binary",
    "ternary",
    "fp4_e2m1:group16:e8m0",
]
SEEING = [name for name in ROUNDINGS.names() if uses_inputs(ROUNDINGS[name])]


def damage(result: Tensor, matrix: Tensor, hessian: Tensor) -> Tensor:
    return output_error((result - matrix).double(), hessian.double())


def test_the_roundings_that_look_at_inputs() -> None:
    assert SEEING == ["adaround", "descent", "gptq", "signround"]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", SEEING)
def test_on_average_better_than_nearest_on_held_out_inputs(name: str, grid: str) -> None:
    """The second moment is estimated from one half of the inputs; the damage is that on the other half."""
    generator = torch.Generator().manual_seed(4)
    inputs = torch.randn(600, 6, generator=generator) @ torch.randn(6, 32, generator=generator)
    inputs += 0.2 * torch.randn(600, 32, generator=generator)
    seen, held_out = (half.T @ half / 300 for half in inputs.split(300))
    matrix, parsed = torch.randn(16, 32), Grid.parse(grid)
    ours = ROUNDINGS[name](matrix, parsed, RoundingContext(seen)).dequantize()
    plain = parsed.quantize(matrix).dequantize()
    assert damage(ours, matrix, held_out).mean() < 0.85 * damage(plain, matrix, held_out).mean()


@pytest.mark.parametrize("method", [Descent(), AdaRound(), SignRound()])
@pytest.mark.parametrize("grid", GRIDS)
def test_no_row_is_worse_than_nearest_at_the_same_scales(method: AdaRound | Descent | SignRound, grid: str) -> None:
    matrix, parsed, hessian = torch.randn(12, 32), Grid.parse(grid), correlated(32).float()
    context = RoundingContext(hessian)
    scales = parsed.fit(matrix, context.importance(matrix))
    plain = parsed.decode(parsed.encode(matrix, scales), scales)
    ours = method(matrix, parsed, context).dequantize()
    assert (damage(ours, matrix, hessian) <= damage(plain, matrix, hessian) * 1.02 + 1e-6).all()  # 1 %: damping


@pytest.mark.parametrize("grid", GRIDS)
def test_descent_improves_on_gptq(grid: str) -> None:
    matrix, parsed, hessian = torch.randn(12, 32), Grid.parse(grid), correlated(32)
    context = RoundingContext(hessian)
    ours, theirs = (
        damage(m(matrix, parsed, context).dequantize(), matrix, hessian).mean() for m in (Descent(), Gptq())
    )
    assert ours <= theirs * 1.001


@pytest.mark.parametrize("block", [128, 5])
def test_descent_ends_where_no_single_code_helps(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the blocks that columns hear of each other in."""
    monkeypatch.setattr("geoquant.rounding.descent._BLOCK", block)
    matrix, grid, hessian = torch.randn(4, 16), Grid.parse("int3:maxabs:fp32"), correlated(16)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(16)
    result = Descent(sweeps=100)(matrix, grid, RoundingContext(hessian))
    best = damage(result.dequantize(), matrix, damped)
    for column, step in itertools.product(range(16), (-1, 1)):
        codes = result.codes.int()
        codes[:, column] = (codes[:, column] + step).clamp(0, 7)
        assert (damage(grid.decode(codes.to(torch.uint8), result.scales), matrix, damped) >= best * (1 - 1e-5)).all()


def test_the_exact_optimum_of_a_small_row() -> None:
    """All 2^5 roundings up or down of a row, in float64: descent and AdaRound come near it on average."""
    hessian, grid = correlated(5, rank=2), Grid.parse("int4:maxabs:fp32")
    matrix = torch.randn(30, 5)
    scales = grid.fit(matrix)
    low, high, _ = neighbours(grid, grid.normalize(matrix, scales))
    choices = [torch.where(torch.tensor(bits).bool(), high, low) for bits in itertools.product((0, 1), repeat=5)]
    best = torch.stack([damage(level * scales.scale, matrix, hessian) for level in choices]).amin(0).mean()
    nearest = damage(grid.quantize(matrix).dequantize(), matrix, hessian).mean()
    found = [
        damage(m(matrix, grid, RoundingContext(hessian)).dequantize(), matrix, hessian) for m in (AdaRound(), Descent())
    ]
    assert max(found[0].mean(), found[1].mean()) < 0.6 * nearest
    assert found[0].mean() < 4 * best < nearest


def test_gate_and_neighbours() -> None:
    v = torch.linspace(-6, 6, 50)
    assert (gate(v).diff() >= 0).all()
    low, high, share = neighbours(Grid.parse("fp4_e2m1"), torch.tensor([-9.0, 0.2, 3.5, 9.0]))
    assert low.tolist() == [-6.0, 0.0, 3.0, 4.0]
    assert high.tolist() == [-4.0, 0.5, 4.0, 6.0]
    torch.testing.assert_close(share, torch.tensor([0.0, 0.4, 0.5, 1.0]))


@pytest.mark.parametrize("grid", ["int3:maxabs", "int3:affine:group16:maxabs"])
def test_hqq_lowers_its_measure_and_pays_in_squares(grid: str) -> None:
    parsed, matrix = Grid.parse(grid), torch.distributions.StudentT(2.0).sample((8, 64))
    ours, plain = (
        one.dequantize() - matrix for one in (Hqq()(matrix, parsed, RoundingContext()), parsed.quantize(matrix))
    )
    assert ours.abs().pow(0.7).sum() < 0.98 * plain.abs().pow(0.7).sum()
    per_scale = [
        torch.stack([part.abs().pow(0.7).sum(1) for part in parsed.granularity.rows(error)]) for error in (ours, plain)
    ]
    assert (per_scale[0] <= per_scale[1] * (1 + 1e-5)).all()
    mse = Grid.parse("int3")
    forgiving, squares = Hqq()(matrix, mse, RoundingContext()).dequantize(), mse.quantize(matrix).dequantize()
    assert (forgiving - matrix).square().sum() >= (squares - matrix).square().sum(), "least squares is best at squares"
