"""How much can a linear map, given as tensors, stretch a vector at most?

Upper bounds of spectral norms, in float64 with a margin for rounding. A power iteration converges to the norm from
below, so it may not stand in a bound.

Where the answer stops: a convolution's bound is that of a periodic one (see `geoquant.geometry.spectral_norm_bound`);
for small maps it lies some percent above the norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from geoquant.geometry import spectral_norm_bound

# The top eigenvalue of a Gram matrix in float64 is off by a small multiple of n·2⁻⁵³; this covers n up to 10⁵.
_MARGIN = 1 + 1e-9


def matrix_norm_bound(matrix: Tensor) -> float:
    """Bound the spectral norm of a (…, rows, columns) real or complex matrix; the largest over the leading axes.

    >>> round(matrix_norm_bound(torch.diag(torch.tensor([3.0, -4.0]))), 6)
    4.0
    """
    wide = matrix.detach()
    wide = wide.to(torch.complex128) if wide.is_complex() else wide.double()
    gram = wide @ wide.mH if wide.shape[-2] <= wide.shape[-1] else wide.mH @ wide
    return math.sqrt(max(float(torch.linalg.eigvalsh(gram)[..., -1].max()), 0.0)) * _MARGIN


def convolution_norm_bound(
    kernel: Tensor, shape: Sequence[int], stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> float:
    """Bound the spectral norm of a zero-padded convolution operator.

    Args:
        kernel: (out channels, in channels / groups, *spatial).
        shape: of the input, without the batch axis.
        stride: as `torch.nn.functional.conv2d` takes it; likewise the rest.
        padding: zeros on both sides.
        dilation: between taps.
        groups: channel groups.

    >>> round(convolution_norm_bound(torch.ones(1, 1, 3) / 3, [1, 100]), 4)       # constant signals pass unchanged
    1.0
    >>> round(convolution_norm_bound(torch.ones(1, 1, 2), [1, 50], stride=2), 4)   # sums of disjoint pairs: √2
    1.4142
    """
    axes = kernel.dim() - 2
    kind: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    channels = kernel.shape[1] * groups
    steps = [padding if isinstance(padding, str) else tuple(per_axis(padding, axes)), tuple(per_axis(dilation, axes))]
    strides = tuple(per_axis(stride, axes))
    layer = kind(channels, len(kernel), tuple(kernel.shape[2:]), strides, *steps, groups, bias=False, device="meta")
    layer.weight = nn.Parameter(kernel.detach().double(), requires_grad=False)
    return spectral_norm_bound(layer, tuple(shape)).value


def nonnegative_norm_bound(function: Callable[[Tensor], Tensor], example: Tensor) -> float:
    """Bound the 2-norm of a linear map with coefficients ≥ 0 by √(largest row sum · largest column sum).

    Schur's test; exact for disjoint windows.

    >>> round(nonnegative_norm_bound(lambda x: x.mean(1), torch.zeros(1, 16, dtype=torch.float64)), 6)
    0.25
    """
    ones = torch.ones_like(example).requires_grad_()
    with torch.enable_grad():
        rows = function(ones)
        (columns,) = torch.autograd.grad(rows.sum(), ones)
    return float((rows.detach().max() * columns.max()).sqrt()) * _MARGIN


def per_axis(value: Any, axes: int) -> list[int]:
    """Spell out a stride, padding or kernel size that was given once for all axes.

    >>> per_axis(2, 3), per_axis([1, 2], 2)
    ([2, 2, 2], [1, 2])
    """
    values = [value] if isinstance(value, int) else list(value)
    return values * axes if len(values) == 1 else values
