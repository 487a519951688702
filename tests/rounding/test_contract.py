"""Every registered rounding keeps the laws on every kind of grid."""

from __future__ import annotations

import pytest
import torch

from geoquant.errors import GridError, UnknownNameError
from geoquant.grids import Grid
from geoquant.rounding import ROUNDINGS, RoundingContext
from rounding.contract import check_rounding

GRIDS = ["int2", "int3:affine:group8", "int8:narrow:maxabs", "int16", "int3:mse-signed", "binary", "ternary"]
GRIDS += ["fp4_e2m1:group16:e8m0", "fp8_e4m3:tensor", "fp16", "bf16", "fp32"]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", ROUNDINGS.names())
def test_laws(name: str, grid: str) -> None:
    inputs = torch.randn(50, 30)
    context = RoundingContext(hessian=inputs.T @ inputs / 50, seed=3)
    for matrix in (torch.randn(4, 30), torch.zeros(2, 30), torch.randn(30, 30).t() * 1e-6):
        check_rounding(ROUNDINGS[name], Grid.parse(grid), matrix, context)


@pytest.mark.parametrize("name", ROUNDINGS.names())
def test_weights_must_be_finite(name: str) -> None:
    with pytest.raises(GridError, match="NaN or Inf"):
        ROUNDINGS[name](torch.full((1, 3), torch.nan), Grid.parse("int4"), RoundingContext())


def test_unknown_rounding() -> None:
    with pytest.raises(UnknownNameError, match="'nearest'"):
        ROUNDINGS["neerest"]
