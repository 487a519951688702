"""Round each weight to one of its two neighbours, at random, so that the mean is the weight itself.

The upper neighbour is taken with probability (x − lower)/(upper − lower): unbiased wherever x lies between
the end levels, whatever their spacing. Beyond them weights clip as in any rounding. The price is variance:
up to a quarter of the squared step per weight, so use it where many roundings average out (training), not to
deploy a single matrix. See Gupta et al., arXiv:1502.02551.
"""

from __future__ import annotations

import torch
from torch import Tensor

from geoquant.grids import Grid, QuantizedMatrix
from geoquant.rounding.protocol import ROUNDINGS, RoundingContext


@ROUNDINGS.add("stochastic")
def stochastic(matrix: Tensor, grid: Grid, context: RoundingContext) -> QuantizedMatrix:
    """Return `matrix` (channels, fan_in) rounded at random to neighbouring points of `grid`.

    The scales are those that the grid fits for nearest rounding; draws follow `context.seed`.

    Raises:
        GridError: as `Grid.fit`.

    >>> matrix = torch.full((1, 1000), 0.25)
    >>> matrix[0, 0] = -3.5  # fixes the step at 1
    >>> rounded = stochastic(matrix, Grid.parse("int3:maxabs:fp32"), RoundingContext(seed=1)).dequantize()
    >>> sorted(set(rounded[0, 1:].tolist())), abs(float(rounded[0, 1:].mean()) - 0.25) < 0.05
    ([0.0, 1.0], True)
    """
    scales = grid.fit(matrix)
    levels = grid.format.levels
    if levels is None:  # every float32 is a level: there is nothing to draw
        return QuantizedMatrix(grid, grid.encode(matrix, scales), scales)
    x = grid.normalize(matrix, scales)
    draws = torch.rand(x.shape, generator=context.generator(x.device), device=x.device)
    return QuantizedMatrix(grid, grid.format.encode(draw_neighbour(x, levels, draws)), scales)


def draw_neighbour(x: Tensor, levels: Tensor, draws: Tensor) -> Tensor:
    """Return for each x the level below or above it: above where `draws` falls below its share of the gap.

    Args:
        x: any shape, float32.
        levels: (n,), ascending.
        draws: uniform in [0, 1), the shape of `x`.

    >>> draw_neighbour(torch.tensor([0.25, 0.25, 9.0]), torch.tensor([0.0, 1.0, 3.0]), torch.tensor([0.2, 0.3, 0.5]))
    tensor([1., 0., 3.])
    """
    levels = levels.to(x)
    x = x.clamp(levels[0], levels[-1])
    upper = torch.bucketize(x.contiguous(), levels).clamp_(min=1)  # the first level ≥ x
    low, high = levels[upper - 1], levels[upper]
    return torch.where(draws < (x - low) / (high - low), high, low)
