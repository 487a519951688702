"""Which scales and zero points serve the bulk of the weights, when outliers may be missed? No data needed.

HQQ (Badri and Shaji, "Half-Quadratic Quantization", 2023): minimise Σ|w − s(q − z)|^p with p < 1, which forgives
few large errors where least squares would not. Half-quadratic splitting alternates between the sparse part of the
error, e = sign(r)·max(|r| − |r|^(p−1)/β, 0), and the fit of the grid to w − e. The original moves a float zero
point under a fixed scale; our zero points are codes, and most of our grids have none, so the scale is fitted by
least squares as well. The round whose error is least, measured with p, wins: never worse than nearest in that measure.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geoquant.grids import SCALE_DTYPES, Grid, QuantizedMatrix, Scales
from geoquant.rounding.protocol import ROUNDINGS, RoundingContext


@dataclass(frozen=True)
class Hqq:
    """HQQ with its settings.

    Attributes:
        power: p; 1 is the sum of absolute errors, smaller forgives more.
        rounds: of splitting.
        strength: first β, in units of 1/scale.
        growth: factor of β from round to round.
    """

    power: float = 0.7
    rounds: int = 20
    strength: float = 10.0
    growth: float = 1.01

    def __call__(self, matrix: Tensor, grid: Grid, context: RoundingContext) -> QuantizedMatrix:
        """Return `matrix` (channels, fan_in) on `grid`; ignores `context`.

        Raises:
            GridError: as `Grid.fit`.

        >>> grid = Grid.parse("int3:fp32")
        >>> Hqq()(torch.tensor([[-4.0, 1.0, 2.0, 3.0]]), grid, RoundingContext()).dequantize().tolist()
        [[-4.0, 1.0, 2.0, 3.0]]
        """
        best = grid.quantize(matrix)
        if not grid.granularity.scaled or not SCALE_DTYPES[grid.scale_dtype].stored_as.is_floating_point:
            return best
        weights = matrix.detach().float()
        least = self._damage(best, weights)
        current, strength = best, self.strength
        for _ in range(self.rounds):
            unit = grid.granularity.expand(current.scales.scale.abs(), weights.shape[1]).clamp(min=1e-30)
            miss = (weights - current.dequantize()) / unit
            shrunk = miss.abs() - miss.abs().clamp(min=1e-8).pow(self.power - 1) / strength
            sparse = miss.sign() * shrunk.clamp(min=0) * unit
            scales = _fit(weights - sparse, current)
            current = QuantizedMatrix(grid, grid.encode(weights, scales), scales)
            damage = self._damage(current, weights)
            best = _better(best, current, damage < least)
            least = torch.minimum(least, damage)
            strength *= self.growth
        return best

    def _damage(self, quantized: QuantizedMatrix, weights: Tensor) -> Tensor:
        """Return Σ|w − q|^p over the weights of each scale, in the shape of the scales."""
        return _sums(quantized.grid, (weights - quantized.dequantize()).abs().pow(self.power))


ROUNDINGS.register("hqq", Hqq())


def _sums(grid: Grid, values: Tensor) -> Tensor:
    """Return sums over the weights that share a scale, in the shape of the scales."""
    parts = [part.sum(1) for part in grid.granularity.rows(values)]
    return grid.granularity.gather(parts, (values.shape[0], values.shape[1]))


def _fit(wished: Tensor, current: QuantizedMatrix) -> Scales:
    """Return scales, and zero points where there are any, fitted to the `wished` weights under the codes' levels."""
    grid, scales = current.grid, current.scales
    kind = SCALE_DTYPES[grid.scale_dtype]
    level = grid.format.decode(current.codes)
    zero = scales.zero
    if zero is not None:
        scale = grid.granularity.expand(scales.scale, wished.shape[1])
        gaps = level - torch.where(scale == 0, 0.0, wished / scale)
        count = _sums(grid, torch.ones_like(level))
        zero = (_sums(grid, gaps) / count).round().clamp(0, 2 * grid.format.reach).int()
        level = level - grid.granularity.expand(zero, wished.shape[1])
    square = _sums(grid, level.square())
    best = torch.where(square > 0, _sums(grid, wished * level) / square.clamp(min=1e-30), scales.scale)
    return Scales(kind.load(kind.store(best.clamp(-kind.largest, kind.largest))), zero)


def _better(old: QuantizedMatrix, new: QuantizedMatrix, where: Tensor) -> QuantizedMatrix:
    """Return the matrix that takes `new` for the scales (in their shape) where it is better."""
    scale = torch.where(where, new.scales.scale, old.scales.scale)
    zero = None
    if old.scales.zero is not None and new.scales.zero is not None:
        zero = torch.where(where, new.scales.zero, old.scales.zero)
    spread = old.grid.granularity.expand(where, old.codes.shape[1])
    return QuantizedMatrix(old.grid, torch.where(spread, new.codes, old.codes), Scales(scale, zero))
