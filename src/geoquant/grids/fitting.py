"""How far are rows of weights from a grid at given scales, and which scale suits given codes?

The two questions that every scale search asks, answered for many rows at once. Rows are brought to a
common size by powers of two (exact), so squares neither overflow nor vanish; errors are float32 sums
inside a block and float64 sums across blocks, and only blocks that fit a cache are held beside the weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geoquant.grids.formats import NumberFormat
from geoquant.grids.scale_dtypes import power_of_two, scale_dtype

_BLOCK = 1 << 19


def block_size(device: torch.device) -> int:
    """Return how many weights to treat at a time: on a CPU, what its caches hold; much more elsewhere."""
    return _BLOCK if device.type == "cpu" else 1 << 26


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of weights that get one scale (and zero point) each.

    Attributes:
        format: the levels.
        dtype: name of the scale dtype.
        weights: (rows, length) float32, each row divided by `unit`.
        unit: (rows,) float64 powers of two. Scales below are in this unit too.
        root: (rows, length) square roots of the weights' importance, at most 1; None for equal importance.
    """

    format: NumberFormat
    dtype: str
    weights: Tensor
    unit: Tensor
    root: Tensor | None

    @staticmethod
    def of(format: NumberFormat, dtype: str, weights: Tensor, importance: Tensor | None) -> Rows:
        """Normalise `weights` (rows, length) and their `importance` (same shape, ≥ 0)."""
        largest = weights.abs().amax(1).double()
        unit = power_of_two(torch.frexp(largest).exponent.clamp(min=-120))
        root = None
        if importance is not None:
            top = importance.amax(1, keepdim=True)
            root = (importance / torch.where(top > 0, top, 1)).sqrt().float()
        return Rows(format, dtype, weights * (1 / unit).float()[:, None], unit, root)

    def below(self, scale: Tensor) -> Tensor:
        """Return the largest storable scale ≤ each `scale` (rows,), ≥ 0."""
        return scale_dtype(self.dtype).below(scale * self.unit) / self.unit

    def above(self, scale: Tensor) -> Tensor:
        """Return the smallest storable scale ≥ each `scale` (rows,), or the largest of all."""
        kind = scale_dtype(self.dtype)
        return kind.above(scale * self.unit).clamp(max=kind.largest) / self.unit

    def error(self, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        """Return Σ h (w − Q(w))² of each row, with codes nearest at `scale` and `zero`.

        All three are (rows,), or (candidates, rows) for several candidates at once; errors are float64.
        """
        total = torch.zeros_like(scale)
        for weights, root in self._blocks(scale.numel()):
            level = self._levels(weights, scale, zero)
            miss = torch.addcmul(weights, level, scale.float()[..., None], value=-1)
            miss = miss if root is None else miss.mul_(root)
            total += torch.linalg.vector_norm(miss, dim=-1).double().square_()
        return total

    def least_squares(self, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        """Return the scale that suits the codes at `scale` best: Σ h w q / Σ h q², (rows,) float64.

        With all q at zero there is nothing to fit and `scale` itself returns.
        """
        cross, square = torch.zeros_like(scale), torch.zeros_like(scale)
        for weights, root in self._blocks(scale.numel()):
            level = self._levels(weights, scale, zero)
            if root is not None:
                level, weights = level.mul_(root), weights * root
            cross += (weights * level).sum(1).double()
            square += level.square_().sum(1).double()
        return torch.where(square > 0, cross / square.clamp(min=torch.finfo(torch.float64).tiny), scale)

    def _levels(self, weights: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        """Return the nearest levels in units of the scale, the zero point taken off."""
        x = weights * inverse(scale).float()[..., None]
        if zero is None:
            return self.format.nearest(x)
        shift = zero.float()[..., None]
        return self.format.nearest(x.add_(shift)).sub_(shift)

    def _blocks(self, rows: int) -> list[tuple[Tensor, Tensor | None]]:
        """Cut the columns so that temporaries of `rows` rows stay small even when a row is a whole matrix."""
        width = max(1, block_size(self.weights.device) // rows)
        weights = torch.split(self.weights, width, 1)
        roots = [None] * len(weights) if self.root is None else torch.split(self.root, width, 1)
        return list(zip(weights, roots, strict=True))


def inverse(scale: Tensor) -> Tensor:
    """Return 1/scale, and 0 for a scale of 0, under which every weight becomes 0."""
    return torch.where(scale == 0, 0.0, 1.0 / scale)
