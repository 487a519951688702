"""GPTQ is what the paper says, helps where inputs are correlated, and is nearest rounding where they are not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from geoquant.errors import ModelError
from geoquant.grids import Grid, Scales
from geoquant.rounding import Gptq, RoundingContext, nearest
from geoquant.rounding.gptq import inverse_factor

GRIDS = ["int2", "int3:mse-signed", "int4:affine:group8", "int3:narrow:tensor:maxabs", "binary", "ternary"]
GRIDS += ["fp4_e2m1:group16:e8m0", "fp8_e4m3:channel"]


def correlated(fan_in: int, seed: int = 0, rank: int = 6) -> Tensor:
    """Return a second moment of inputs that lie near a subspace."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(fan_in, rank, generator=generator)
    return (mixing @ mixing.T / rank + 0.05 * torch.eye(fan_in)).double()


def damage(result: Tensor, matrix: Tensor, hessian: Tensor) -> Tensor:
    """Return e H eᵀ of each row."""
    error = (result - matrix).double()
    return ((error @ hessian) * error).sum(1)


@pytest.mark.parametrize("name", GRIDS)
def test_on_average_never_worse_than_nearest(name: str) -> None:
    """Negative twin inside: judged by another layer's inputs, the same codes are worse than nearest ones."""
    grid, hessian, other = Grid.parse(name), correlated(48), correlated(48, seed=7)
    matrix = torch.randn(64, 48)
    ours = Gptq(weighted=False)(matrix, grid, RoundingContext(hessian)).dequantize()
    plain = grid.quantize(matrix).dequantize()
    assert damage(ours, matrix, hessian).mean() < 0.8 * damage(plain, matrix, hessian).mean()
    if grid.bits > 2:  # coarser ones move too little for the twin
        assert damage(ours, matrix, other).mean() > damage(plain, matrix, other).mean()


@pytest.mark.parametrize("name", GRIDS)
def test_a_diagonal_hessian_gives_nearest_rounding(name: str) -> None:
    grid, matrix = Grid.parse(name), torch.randn(5, 40)
    hessian = torch.diag(torch.rand(40) + 0.1)
    ours = Gptq(weighted=False)(matrix, grid, RoundingContext(hessian))
    assert torch.equal(ours.codes, nearest(matrix, grid, RoundingContext()).codes)
    assert not torch.equal(Gptq(weighted=False)(matrix, grid, RoundingContext(correlated(40))).codes, ours.codes), (
        "the twin: correlated inputs must change something"
    )


def reference(matrix: Tensor, grid: Grid, scales: Scales, hessian: Tensor, damping: float) -> Tensor:
    """Round by repeated exact elimination in float64, the optimal brain surgeon's way (equation 2 of the paper)."""
    w, h = matrix.double().clone(), hessian.double()
    inverse = torch.linalg.inv(h + damping * h.diagonal().mean() * torch.eye(len(h), dtype=torch.float64))
    left = torch.argsort(h.diagonal(), descending=True, stable=True).tolist()
    result = torch.zeros_like(w)
    while left:
        j = left.pop(0)
        whole = grid.decode(grid.encode(w.float(), scales), scales)
        result[:, j] = whole[:, j].double()
        error = (w[:, j] - result[:, j]) / inverse[j, j]
        w -= error[:, None] * inverse[j]
        inverse -= torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return result


@pytest.mark.parametrize("name", ["int3:mse-signed", "int4:affine:group8", "ternary"])
def test_agrees_with_slow_elimination_in_float64(name: str) -> None:
    grid, matrix, hessian = Grid.parse(name), torch.randn(6, 150), correlated(150, rank=40)
    ours = Gptq(weighted=False)(matrix, grid, RoundingContext(hessian)).dequantize()  # spans two blocks of columns
    slow = reference(matrix, grid, grid.fit(matrix), hessian, 0.01)
    same = (ours.double() - slow).abs() < 1e-5
    assert same.all(1).sum() >= 5, "a tie in float32 may send at most a row another way"
    torch.testing.assert_close(damage(ours, matrix, hessian), damage(slow.float(), matrix, hessian), rtol=0.02, atol=0)


def test_the_block_size_changes_nothing() -> None:
    matrix, context = torch.randn(8, 70), RoundingContext(correlated(70))
    codes = [Gptq(block=block)(matrix, Grid.parse("int3"), context).codes for block in (1, 16, 128)]
    agreement = [(codes[0] == other).float().mean() for other in codes[1:]]
    assert min(agreement) > 0.98


def test_groups_of_channels_see_their_own_inputs() -> None:
    first, second = correlated(20), correlated(20, seed=3)
    matrix, grid = torch.randn(6, 20), Grid.parse("int3")
    both = Gptq()(matrix, grid, RoundingContext(torch.stack([first, second])))
    halves = [Gptq()(matrix[:3], grid, RoundingContext(first)), Gptq()(matrix[3:], grid, RoundingContext(second))]
    assert torch.equal(both.codes, torch.cat([half.codes for half in halves]))


def test_dead_columns_go_to_nearest_and_disturb_nobody() -> None:
    hessian = correlated(20)
    hessian[3], hessian[:, 3] = 0, 0
    matrix, grid = torch.randn(6, 20), Grid.parse("int4")
    ours = Gptq(weighted=False)(matrix, grid, RoundingContext(hessian))
    assert torch.equal(ours.codes[:, 3], grid.quantize(matrix).codes[:, 3])
    changed = matrix.clone()
    changed[:, 3] *= 0.9
    first, again = (Gptq().place(weights, grid, ours.scales, hessian) for weights in (matrix, changed))
    others = [column for column in range(20) if column != 3]
    assert torch.equal(first[:, others], again[:, others])


def test_singular_and_empty_moments() -> None:
    rank_one = torch.ones(12, 12)
    matrix, grid = torch.randn(4, 12), Grid.parse("int3")
    assert damage(Gptq()(matrix, grid, RoundingContext(rank_one)).dequantize(), matrix, rank_one.double()).max() < 0.3
    nothing = Gptq()(matrix, grid, RoundingContext(torch.zeros(12, 12)))
    assert torch.isfinite(nothing.dequantize()).all()
    assert torch.isfinite(inverse_factor(torch.zeros(3, 3), 0.01)).all()


def test_a_hessian_of_another_layer_is_refused() -> None:
    with pytest.raises(ModelError, match="does not fit"):
        Gptq()(torch.randn(4, 12), Grid.parse("int3"), RoundingContext(torch.eye(11)))
