"""Operator norm bounds against dense matrices of the real operators."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from geoquant.bounds.operator_norms import convolution_norm_bound, matrix_norm_bound

CASES = [
    # channels in, out, groups, kernel, stride, padding, dilation, input size
    (3, 4, 1, (3, 3), (1, 1), (1, 1), (1, 1), (9, 9)),
    (2, 4, 2, (3, 3), (2, 2), (1, 1), (1, 1), (9, 11)),
    (2, 2, 1, (5, 3), (2, 3), (0, 1), (1, 1), (12, 14)),
    (2, 3, 1, (3, 3), (1, 1), (2, 2), (2, 2), (8, 8)),
    (3, 2, 1, (1, 1), (2, 2), (0, 0), (1, 1), (9, 9)),
    (1, 3, 1, (2, 2), (1, 1), (0, 0), (1, 1), (4, 4)),
]


def dense_norm(kernel: torch.Tensor, size: tuple[int, int], stride, padding, dilation, groups) -> float:
    channels = kernel.shape[1] * groups
    basis = torch.eye(channels * size[0] * size[1], dtype=torch.float64).reshape(-1, channels, *size)
    images = F.conv2d(basis, kernel, None, stride, padding, dilation, groups)
    return float(np.linalg.norm(images.flatten(1).numpy(), 2))


@pytest.mark.parametrize("case", CASES)
def test_the_bound_lies_just_above_the_norm_of_the_real_operator(case):
    inputs, outputs, groups, kernel_size, stride, padding, dilation, size = case
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        kernel = torch.randn(outputs, inputs // groups, *kernel_size, dtype=torch.float64, generator=generator)
        norm = dense_norm(kernel, size, stride, padding, dilation, groups)
        bound = convolution_norm_bound(kernel, (inputs, *size), stride, padding, dilation, groups)
        assert norm <= bound <= 1.35 * norm


def test_the_reshaped_kernel_is_no_upper_bound():
    # The negative twin: all-ones kernels gain a factor of almost 3 over σ of the (out, in·k·k) matrix.
    kernel = torch.ones(1, 1, 3, 3, dtype=torch.float64)
    norm = dense_norm(kernel, (16, 16), (1, 1), (1, 1), (1, 1), 1)
    assert matrix_norm_bound(kernel.flatten(1)) == pytest.approx(3)
    assert 8 < norm <= convolution_norm_bound(kernel, (1, 16, 16), padding=1) <= 9.001


def test_matrix_norm_matches_svd_and_takes_the_largest_of_a_stack():
    stack = torch.randn(3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = max(np.linalg.norm(one, 2) for one in stack.numpy())
    assert matrix_norm_bound(stack) == pytest.approx(expected, rel=1e-8)
    assert matrix_norm_bound(stack) >= expected
    assert matrix_norm_bound(torch.zeros(2, 3)) == 0.0
