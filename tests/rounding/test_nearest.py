"""Nearest rounding is the grid's own, whatever the context says."""

from __future__ import annotations

import torch

from geoquant.grids import Grid
from geoquant.rounding import RoundingContext, nearest


def test_no_single_change_of_a_code_comes_closer() -> None:
    grid, matrix = Grid.parse("int3"), torch.randn(3, 40)
    result = nearest(matrix, grid, RoundingContext())
    error = (result.dequantize() - matrix).abs()
    for step in (-1, 1):
        codes = (result.codes.int() + step).clamp(0, 7).to(torch.uint8)
        assert ((grid.decode(codes, result.scales) - matrix).abs() >= error - 1e-6).all()


def test_context_is_ignored() -> None:
    matrix = torch.randn(3, 40)
    contexts = RoundingContext(), RoundingContext(torch.diag(torch.rand(40)), seed=9)
    codes = [nearest(matrix, Grid.parse("int2"), context).codes for context in contexts]
    assert torch.equal(*codes)
