"""Laws of every rounding; a newcomer registers its function and inherits them all."""

from __future__ import annotations

import torch
from torch import Tensor

from geoquant.grids import Grid, QuantizedMatrix
from geoquant.rounding import Rounding, RoundingContext


def check_rounding(rounding: Rounding, grid: Grid, matrix: Tensor, context: RoundingContext) -> None:
    """Hold `rounding` to the laws of its protocol on one matrix (channels, fan_in)."""
    before = matrix.clone()
    torch.manual_seed(1)
    result = rounding(matrix, grid, context)
    restored = result.dequantize()
    assert torch.equal(matrix, before), "the matrix changed"
    assert isinstance(result, QuantizedMatrix)
    assert result.grid == grid
    assert restored.shape == matrix.shape
    assert torch.equal(grid.decode(grid.encode(restored, result.scales), result.scales), restored), "off the grid"

    torch.manual_seed(2)
    again = rounding(matrix, grid, context)
    assert torch.equal(again.codes, result.codes), "the seed of the context must be the only source of chance"
    assert torch.equal(again.scales.scale, result.scales.scale)

    unpacked = QuantizedMatrix.unpack(grid, result.shape, result.pack())
    assert torch.equal(unpacked.dequantize(), restored)

    fixed = rounding(restored, grid, context).dequantize()
    nearest = grid.quantize(restored).dequantize()
    tolerance = 1e-6 * restored.abs().max()
    if torch.allclose(nearest, restored, atol=tolerance, rtol=0):  # the grid can hold its own points again
        assert torch.allclose(fixed, restored, atol=tolerance, rtol=0), "points of the grid must stay where they are"
