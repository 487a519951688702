"""Packed tensors that do not fit their grid are refused."""

from __future__ import annotations

import pytest
import torch

from geoquant.errors import FileFormatError
from geoquant.grids import Grid, QuantizedMatrix

GRID = Grid.parse("int3:affine:group8")


def packed() -> dict[str, torch.Tensor]:
    return GRID.quantize(torch.randn(4, 20)).pack()


def test_whole_tensors_unpack():
    assert QuantizedMatrix.unpack(GRID, (4, 20), packed()).shape == (4, 20)


@pytest.mark.parametrize("suffix", ["codes", "scales", "zeros"])
def test_missing_tensors(suffix):
    tensors = packed()
    del tensors[suffix]
    with pytest.raises(FileFormatError, match=r"stored as \['codes', 'scales', 'zeros'\]"):
        QuantizedMatrix.unpack(GRID, (4, 20), tensors)


def test_extra_tensors():
    with pytest.raises(FileFormatError, match="'bias'"):
        QuantizedMatrix.unpack(GRID, (4, 20), packed() | {"bias": torch.zeros(1)})


@pytest.mark.parametrize("suffix", ["codes", "scales", "zeros"])
def test_shapes_and_types_must_fit(suffix):
    tensors = packed()
    for wrong in (tensors[suffix][:-1], tensors[suffix].float()):
        with pytest.raises(FileFormatError, match=f"the {suffix} of a 4 × 20 matrix"):
            QuantizedMatrix.unpack(GRID, (4, 20), tensors | {suffix: wrong})


def test_another_shape_of_equal_size_is_noticed():
    with pytest.raises(FileFormatError, match="scales of a 5 × 16"):
        QuantizedMatrix.unpack(GRID, (5, 16), packed())
