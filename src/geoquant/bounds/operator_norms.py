"""How much can a linear map stretch a vector, at most?

Upper bounds of spectral norms, in float64 with a margin for rounding. A power iteration converges to the norm from
below, so it may not stand in a bound. A dense matrix has its norm computed; a convolution with zero padding is a part
of a circular convolution on a larger torus, whose norm is the largest norm of its transfer matrix over the torus's
frequencies (Sedghi, Gupta, Long, arXiv 1805.10408). Strides become extra input channels (polyphase form), so the
same holds for them.

Where the answer stops: the torus sees no border, so for small maps the bound lies some percent above the norm.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

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
    kernel: Tensor, output: Sequence[int], stride: Sequence[int], dilation: Sequence[int], groups: int = 1
) -> float:
    """Bound the spectral norm of a zero-padded convolution operator.

    Args:
        kernel: (out channels, in channels / groups, *spatial).
        output: spatial sizes of the output; padding enters only through them.
        stride: per spatial axis.
        dilation: per spatial axis.
        groups: channel groups; the operator is block diagonal and the largest block counts.

    >>> blur = torch.ones(1, 1, 3) / 3
    >>> round(convolution_norm_bound(blur, [100], [1], [1]), 4)       # constant signals pass unchanged
    1.0
    >>> round(convolution_norm_bound(torch.ones(1, 1, 2), [50], [2], [1]), 4)   # sums of disjoint pairs: √2
    1.4142
    """
    spatial = range(kernel.dim() - 2)
    phases = _polyphase(_dilated(kernel.detach().double(), dilation), stride)
    sizes = [output[axis] + phases.shape[2 + axis] - 1 for axis in spatial]
    transfer = torch.fft.rfftn(phases, s=sizes, dim=[2 + axis for axis in spatial])
    transfer = transfer.flatten(2).permute(2, 0, 1)
    return max(matrix_norm_bound(block) for block in transfer.chunk(groups, dim=1))


def _dilated(kernel: Tensor, dilation: Sequence[int]) -> Tensor:
    """Write the zeros of a dilated kernel out."""
    sizes = [(size - 1) * step + 1 for size, step in zip(kernel.shape[2:], dilation, strict=True)]
    spread = kernel.new_zeros(*kernel.shape[:2], *sizes)
    spread[_steps([0] * len(dilation), dilation)] = kernel
    return spread


def _polyphase(kernel: Tensor, stride: Sequence[int]) -> Tensor:
    """Return (out, in · ∏stride, …): tap s·a + φ of an axis becomes tap a of phase φ."""
    parts = []
    sizes = [-(-size // step) for size, step in zip(kernel.shape[2:], stride, strict=True)]
    for phase in itertools.product(*map(range, stride)):
        part = kernel[_steps(phase, stride)]
        padded = kernel.new_zeros(*kernel.shape[:2], *sizes)
        padded[(slice(None), slice(None), *map(slice, part.shape[2:]))] = part
        parts.append(padded)
    return torch.cat(parts, dim=1)


def _steps(starts: Sequence[int], steps: Sequence[int]) -> tuple[slice, ...]:
    spatial = (slice(start, None, step) for start, step in zip(starts, steps, strict=True))
    return (slice(None), slice(None), *spatial)
