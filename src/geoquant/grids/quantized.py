"""A weight matrix on its grid: codes and scales, as numbers and as bytes.

Packing changes nothing: a matrix that went through bytes decodes to the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from geoquant.errors import FileFormatError
from geoquant.grids.granularity import Shape
from geoquant.grids.packing import pack_codes, unpack_codes
from geoquant.grids.scale_dtypes import scale_dtype
from geoquant.grids.scales import Scales

if TYPE_CHECKING:
    from geoquant.grids.grid import Grid


@dataclass(frozen=True, eq=False)
class QuantizedMatrix:
    """Codes of a (channels, fan_in) matrix with the scales that decode them.

    >>> from geoquant.grids import Grid
    >>> matrix = torch.tensor([[-4.0, 1.0, 2.0, 3.0]])
    >>> quantized = Grid.parse("int3:fp32").quantize(matrix)
    >>> quantized.dequantize().tolist()
    [[-4.0, 1.0, 2.0, 3.0]]
    >>> {name: tensor.numel() for name, tensor in quantized.pack().items()}
    {'codes': 2, 'scales': 1}
    """

    grid: Grid
    codes: Tensor
    scales: Scales

    @property
    def shape(self) -> Shape:
        """(channels, fan_in)."""
        channels, fan_in = self.codes.shape
        return channels, fan_in

    def dequantize(self) -> Tensor:
        """Return the float32 matrix (channels, fan_in)."""
        return self.grid.decode(self.codes, self.scales)

    def pack(self) -> dict[str, Tensor]:
        """Return the tensors that `grid.stored(shape)` lists, by suffix, on the CPU."""
        if not self.grid.granularity.scaled:
            return {"values": self.codes.detach().cpu().contiguous()}
        kind = scale_dtype(self.grid.scale_dtype)
        tensors = {
            "codes": pack_codes(self.codes, self.grid.bits),
            "scales": kind.store(self.scales.scale.detach().cpu()),
        }
        if self.scales.zero is not None:
            tensors["zeros"] = pack_codes(self.scales.zero, self.grid.bits)
        return tensors

    @staticmethod
    def unpack(grid: Grid, shape: Shape, tensors: Mapping[str, Tensor]) -> QuantizedMatrix:
        """Return the matrix of `shape` (channels, fan_in) that `pack` turned into `tensors`.

        Raises:
            FileFormatError: a tensor is missing, or has another shape or dtype than the grid stores.
        """
        _check_stored(grid, shape, tensors)
        if not grid.granularity.scaled:
            return QuantizedMatrix(grid, tensors["values"], Scales(torch.ones(1, 1)))
        codes = unpack_codes(tensors["codes"], grid.bits, shape[0] * shape[1]).reshape(shape)
        zero = None
        if "zeros" in tensors:
            groups = grid.granularity.shape(shape)
            zero = unpack_codes(tensors["zeros"], grid.bits, groups[0] * groups[1]).int().reshape(groups)
        return QuantizedMatrix(grid, codes, Scales(scale_dtype(grid.scale_dtype).load(tensors["scales"].cpu()), zero))


def _check_stored(grid: Grid, shape: Shape, tensors: Mapping[str, Tensor]) -> None:
    expected = {part.suffix: part for part in grid.stored(shape)}
    if set(tensors) != set(expected):
        raise FileFormatError(f"a matrix on {grid} is stored as {sorted(expected)}, found {sorted(tensors)}")
    for suffix, part in expected.items():
        found = tensors[suffix]
        if tuple(found.shape) != part.shape or found.dtype != part.dtype:
            raise FileFormatError(
                f"the {suffix} of a {shape[0]} × {shape[1]} matrix on {grid} are {part.dtype} of shape {part.shape}, "
                f"found {found.dtype} of shape {tuple(found.shape)}"
            )
