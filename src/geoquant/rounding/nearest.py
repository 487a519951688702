"""Round each weight to the grid point nearest to it: the baseline of every other rounding.

The best choice when errors of different weights do not interact; blind to the layer's inputs.
"""

from __future__ import annotations

from torch import Tensor

from geoquant.grids import Grid, QuantizedMatrix
from geoquant.rounding.protocol import ROUNDINGS, RoundingContext


@ROUNDINGS.add("nearest")
def nearest(matrix: Tensor, grid: Grid, context: RoundingContext) -> QuantizedMatrix:
    """Return `matrix` (channels, fan_in) with every weight at its nearest point of `grid`; ignores `context`.

    Raises:
        GridError: as `Grid.fit`.

    >>> import torch
    >>> matrix = torch.tensor([[-3.5, 0.4, 0.6, 2.0]])
    >>> nearest(matrix, Grid.parse("int3:maxabs:fp32"), RoundingContext()).dequantize().tolist()
    [[-4.0, 0.0, 1.0, 2.0]]
    """
    return grid.quantize(matrix)
