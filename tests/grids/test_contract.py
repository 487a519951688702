"""Every built-in grid, and one that a third party might add, keeps the laws."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from geoquant.grids import FORMATS, Grid, LevelSet
from grids.contract import check_grid, matrices

# The 16 quantiles of a normal distribution, from Dettmers et al., arXiv:2305.14314, appendix E.
NF4 = LevelSet(
    "nf4",
    (
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ),
)
FORMATS.register("nf4", NF4)

GRIDS = [
    *(f"int{bits}" for bits in (2, 3, 4, 5, 6, 7, 8, 16)),
    *(f"int{bits}:affine" for bits in (2, 4, 8, 16)),
    *(f"int{bits}:narrow" for bits in (2, 8)),
    "int3:mse-signed:fp32",
    "int5:mse-signed:group16",
    "int4:tensor:maxabs",
    "int3:affine:group8:bf16",
    "int2:affine:tensor:fp32",
    "int4:group5:e8m0",
    "int16:fp32",
    "int4:mse-signed:e5m2",
    "int3:group16:e5m2",
    "binary",
    "binary:group7:fp32",
    "binary:e8m0",
    "ternary",
    "ternary:group9:bf16",
    "ternary:maxabs:tensor",
    "fp8_e4m3",
    "fp8_e5m2:tensor",
    "fp8_e4m3:e8m0:group16",
    "fp4_e2m1",
    "fp4_e2m1:group16:e8m0",
    "fp4_e2m1:channel:fp32",
    "fp16",
    "bf16",
    "fp32",
    "nf4:group16",
    "nf4:fp32",
]


@pytest.mark.parametrize("name", GRIDS)
def test_laws(name: str) -> None:
    grid = Grid.parse(name)

    @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
    @given(matrices())
    def on_drawn_matrices(matrix: Tensor) -> None:
        check_grid(grid, matrix)

    on_drawn_matrices()


@pytest.mark.parametrize("name", GRIDS)
def test_laws_on_awkward_matrices(name: str) -> None:
    grid = Grid.parse(name)
    outlier = torch.full((2, 33), 1e-3)
    outlier[0, 5] = 50.0
    for matrix in (
        torch.zeros(2, 3),
        -torch.ones(1, 1),
        outlier,
        torch.tensor([[1e-9] * 4, [-1e-44] * 4]),
        torch.randn(5, 64).relu(),
        torch.randn(36, 4).t(),
    ):
        check_grid(grid, matrix)
