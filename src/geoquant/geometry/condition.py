"""How unevenly does a weight matrix stretch its inputs?

The condition number of the weight seen as a matrix. It speaks of the linear map alone: nothing of the data,
of the loss, or of curvature, for which it has been taken.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from geoquant.errors import GeoquantError, ModelError
from geoquant.geometry.evidence import Estimate


def condition_number(matrix: Tensor) -> Estimate:
    """Return σ_max/σ_min of a weight matrix; infinite, with the rank in the note, where it loses rank.

    For a convolution this is the condition number of the reshaped kernel, which is not that of the
    convolution operator. Singular values up to σ_max·max(m, n)·eps of the given type count as zero.

    Args:
        matrix: (channels, fan_in), or any weight whose first axis counts channels.

    Raises:
        ModelError: the matrix holds NaN or Inf.

    Source: docs/sources.md, "Curvature-Guided Transformer Quantization" (there called curvature).

    >>> condition_number(torch.diag(torch.tensor([4.0, 2.0]))).value
    2.0
    >>> print(condition_number(torch.ones(2, 3)))
    inf (exact: singular values; rank 1 of 2)
    """
    if matrix.dim() < 1 or matrix.numel() == 0:
        raise GeoquantError(f"a condition number needs a matrix, got shape {tuple(matrix.shape)}")
    flat = matrix.detach().reshape(matrix.shape[0], -1)
    if not bool(flat.isfinite().all()):
        raise ModelError("the weight matrix holds NaN or Inf; mend or reload the weights")
    precision = torch.finfo(flat.dtype).eps
    values = torch.linalg.svdvals(flat.double()).cpu()
    largest = float(values[0])
    floor = largest * max(flat.shape) * precision
    rank = int((values > floor).sum())
    if rank < len(values):
        return Estimate.known(math.inf, "singular values", note=f"rank {rank} of {len(values)}")
    return Estimate.known(largest / float(values[-1]), "singular values")
