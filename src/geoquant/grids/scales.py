"""Which scale, and which zero point, should a row of weights get?

Two answers from the weights' range and from the squared error: `maxabs` covers the range and clips nothing;
the searches of `geoquant.grids.search` minimise Σ h (w − Q(w))², where h is the importance of a weight (one,
unless given). Neither asks what the error does to the network; importance is the seam for that.

Conventions for max-abs: scale = max|w| / reach of the format, rounded up to a stored number; affine grids
cover [min(w, 0), max(w, 0)] with zero itself on the grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geoquant.errors import GridError
from geoquant.grids.fitting import Rows, block_size
from geoquant.grids.formats import NumberFormat
from geoquant.grids.scale_dtypes import stored_above
from geoquant.grids.search import SEARCHES


@dataclass(frozen=True, eq=False)
class Scales:
    """Scales of one matrix, and its zero points where the grid has them.

    Attributes:
        scale: (channels, groups) float32, weight units per level; numbers that the grid's scale dtype holds.
        zero: (channels, groups) int32 codes that decode to 0, or None.
    """

    scale: Tensor
    zero: Tensor | None = None

    def __getitem__(self, channels: slice) -> Scales:
        """Return the scales of a slice of channels; one scale for the whole matrix serves every slice."""
        if len(self.scale) == 1:
            return self
        return Scales(self.scale[channels], None if self.zero is None else self.zero[channels])

    def to(self, device: torch.device | str) -> Scales:
        """Return the same scales on `device`."""
        return Scales(self.scale.to(device), None if self.zero is None else self.zero.to(device))


def max_abs(format: NumberFormat, dtype: str, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the scale, and the zero point, that cover [low, high] of each row without clipping.

    Args:
        format: the levels.
        dtype: name of the scale dtype.
        low: (rows,) float64, the smallest weight of each row.
        high: (rows,) float64, the largest.

    Raises:
        GridError: a scale is too large for `dtype`.

    >>> from geoquant.grids.formats import Integer
    >>> one = torch.ones(1, dtype=torch.float64)
    >>> max_abs(Integer(3), "fp32", -3.5 * one, 2 * one)
    (tensor([1.], dtype=torch.float64), None)
    >>> max_abs(Integer(2, affine=True), "fp32", -one, 2 * one)
    (tensor([1.], dtype=torch.float64), tensor([1], dtype=torch.int32))
    """
    if not format.has_zero_point:
        return stored_above(torch.maximum(-low, high) / format.reach, dtype), None
    low, high = low.clamp(max=0), high.clamp(min=0)
    steps = 2 * format.reach
    scale = stored_above((high - low) / steps, dtype)
    zero = torch.where(scale > 0, -low / scale, 0.0).round().clamp(0, steps)
    return scale, zero.int()


def fit_rows(
    format: NumberFormat, scaling: str, dtype: str, weights: Tensor, importance: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return (rows,) float32 scales and int32 zero points for `weights` (rows, length), a block at a time.

    Raises:
        GridError: the scaling has no such name, or a scale is too large for `dtype`.
    """
    size = max(1, block_size(weights.device) // weights.shape[1])
    parts = [] if importance is None else torch.split(importance, size)
    found = [
        _fit_block(format, scaling, dtype, block, parts[i] if parts else None)
        for i, block in enumerate(torch.split(weights, size))
    ]
    scales, zeros = zip(*found, strict=True)
    return torch.cat(scales), torch.cat(zeros) if format.has_zero_point else None


def _fit_block(
    format: NumberFormat, scaling: str, dtype: str, weights: Tensor, importance: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    low, high = (end.double() for end in torch.aminmax(weights, dim=1))
    scale, zero = max_abs(format, dtype, low, high)
    if scaling == "maxabs":
        return scale.float(), zero
    if scaling not in SEARCHES:
        raise GridError(f"there is no scaling named '{scaling}'; expected maxabs, {', '.join(SEARCHES)}")
    rows = Rows.of(format, dtype, weights, importance)
    best = SEARCHES[scaling](rows, scale / rows.unit, zero)
    return (best.scale * rows.unit).float(), best.zero
