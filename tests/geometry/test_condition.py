"""The condition number of a weight matrix, known by construction."""

from __future__ import annotations

import math

import pytest
import torch

from geoquant.errors import ModelError
from geoquant.geometry import condition_number


def _with_singular_values(values: list[float], rows: int, columns: int) -> torch.Tensor:
    left = torch.linalg.qr(torch.randn(rows, rows, dtype=torch.float64))[0][:, : len(values)]
    right = torch.linalg.qr(torch.randn(columns, columns, dtype=torch.float64))[0][:, : len(values)]
    return left * torch.tensor(values, dtype=torch.float64) @ right.T


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (3, 3)])
def test_ratio_of_extreme_singular_values(shape):
    matrix = _with_singular_values([10.0, 4.0, 0.5], *shape)
    found = condition_number(matrix)
    assert found.exact
    assert found.value == pytest.approx(20.0, rel=1e-9)
    assert condition_number(matrix * 7).value == pytest.approx(20.0, rel=1e-9)


def test_a_kernel_is_flattened_to_channels_times_fan_in():
    kernel = torch.randn(4, 3, 2, 2)
    assert condition_number(kernel) == condition_number(kernel.reshape(4, 12))


def test_lost_rank_is_infinite_and_says_the_rank():
    found = condition_number(_with_singular_values([3.0, 1.0], 4, 5).float())
    assert found.value == math.inf
    assert found.note == "rank 2 of 4"
    assert condition_number(torch.zeros(2, 2)).note == "rank 0 of 2"


def test_small_but_real_singular_values_are_not_lost_rank():
    assert condition_number(torch.diag(torch.tensor([1.0, 1e-5]))).value == pytest.approx(1e5, rel=1e-5)


def test_nan_is_refused():
    with pytest.raises(ModelError, match="NaN"):
        condition_number(torch.tensor([[math.nan, 1.0]]))
