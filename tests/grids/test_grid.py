"""Names, defaults and exact costs of grids."""

from __future__ import annotations

import itertools

import pytest
import torch

from geoquant.errors import GridError
from geoquant.grids import Float, Grid, Integer, PerChannel, PerGroup, PerTensor, Storage


def test_defaults():
    grid = Grid.parse("int3")
    assert (grid.format, grid.granularity, grid.scaling, grid.scale_dtype) == (Integer(3), PerChannel(), "mse", "fp16")
    assert Grid.parse("fp4_e2m1").granularity == PerGroup(32)
    assert Grid(Integer(3)) == grid


@pytest.mark.parametrize(
    ("long", "short"),
    [
        ("int3:channel:mse:fp16", "int3"),
        (" int4:maxabs:tensor ", "int4:tensor:maxabs"),
        ("int3:group64:affine", "int3:affine:group64"),
        ("int3:fp32:narrow:mse-signed", "int3:narrow:mse-signed:fp32"),
        ("fp4_e2m1:group32:e8m0", "fp4_e2m1:e8m0"),
        ("fp4_e2m1:channel", "fp4_e2m1:channel"),
        ("fp8_e4m3:tensor", "fp8_e4m3:tensor"),
        ("ternary:group128", "ternary:group128"),
        ("fp16", "fp16"),
        ("int16", "int16"),
    ],
)
def test_canonical_names(long, short):
    assert str(Grid.parse(long)) == short
    assert Grid.parse(short) == Grid.parse(long)


def test_every_order_of_options_is_the_same_grid():
    names = {":".join(["int5", *order]) for order in itertools.permutations(["affine", "group7", "maxabs", "bf16"])}
    assert len({Grid.parse(name) for name in names}) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "no grid named ''"),
        ("in4", "did you mean 'int4'"),
        ("int1", "no positive level"),
        ("int9", "2 to 8 or 16 bits"),
        ("int3:chanel", "no option 'chanel'.*'channel'"),
        ("int3:affin", "did you mean 'affine'"),
        ("binary:narrow", "'binary' has no option 'narrow'"),
        ("int3:tensor:channel", "granularity twice"),
        ("int3:maxabs:mse", "scaling twice"),
        ("int3:fp32:fp32", "scale_dtype twice"),
        ("int3:narrow:narrow", "narrow twice"),
        ("int3:narrow:affine", "cannot be narrow"),
        ("int3:group0", "group of 0 weights is empty"),
        ("int3:", "no option ''"),
        ("fp16:channel", "takes no scales"),
        ("fp32:maxabs", "takes no scales"),
        ("bf16:e8m0", "takes no scales"),
    ],
)
def test_bad_names_say_what_is_wrong(name, message):
    with pytest.raises(GridError, match=message):
        Grid.parse(name)


def test_parts_that_do_not_go_together():
    with pytest.raises(GridError, match="takes no scales"):
        Grid(Float("fp16"), PerTensor())
    with pytest.raises(GridError, match="needs scales"):
        Grid(Integer(4), Grid.parse("fp16").granularity)
    with pytest.raises(GridError, match="no scale type named 'fp17'"):
        Grid(Integer(4), scale_dtype="fp17")


@pytest.mark.parametrize(
    ("name", "shape", "storage"),
    [
        ("int3", (16, 27), Storage(1296, 256, 0, 0)),
        ("int3", (1, 3), Storage(9, 16, 0, 7)),
        ("int3:affine", (10, 27), Storage(810, 160, 30, 6 + 2)),
        ("int4:tensor:fp32", (3, 3), Storage(36, 32, 0, 4)),
        ("int5:group8", (4, 20), Storage(400, 4 * 3 * 16, 0, 0)),  # two whole groups and a short one
        ("int16", (2, 5), Storage(160, 32, 0, 0)),
        ("binary", (3, 7), Storage(21, 48, 0, 3)),
        ("ternary", (1, 7), Storage(12, 16, 0, 4)),
        ("ternary", (5, 5), Storage(40, 80, 0, 0)),
        ("fp4_e2m1:e8m0", (2, 33), Storage(264, 2 * 2 * 8, 0, 0)),
        ("fp8_e4m3:tensor:bf16", (2, 3), Storage(48, 16, 0, 0)),
        ("fp16", (2, 3), Storage(96, 0, 0, 0)),
        ("fp32", (2, 3), Storage(192, 0, 0, 0)),
    ],
)
def test_storage_by_hand(name, shape, storage):
    assert Grid.parse(name).storage(shape) == storage


def test_bits():
    assert [Grid.parse(name).bits for name in ("binary", "ternary", "int5", "fp4_e2m1", "bf16", "fp32")] == [
        *(1, 1.6, 5, 4, 16, 32)
    ]


def test_wider_grids_store_more_and_err_less():
    matrix = torch.randn(8, 100)
    errors, sizes = [], []
    for bits in (2, 3, 4, 5, 6, 7, 8, 16):
        grid = Grid.parse(f"int{bits}:fp32")
        errors.append(float((grid.quantize(matrix).dequantize() - matrix).norm()))
        sizes.append(grid.storage((8, 100)).bytes)
    assert errors == sorted(errors, reverse=True)
    assert sizes == sorted(sizes)
    assert errors[-1] < 1e-4 * errors[0]


def test_fp16_refuses_what_it_cannot_hold():
    with pytest.raises(GridError, match="weights up to 7e\\+04 exceed the largest fp16 number 65504; use bf16 or fp32"):
        Grid.parse("fp16").quantize(torch.full((1, 1), 7e4))
    assert Grid.parse("bf16").quantize(torch.full((1, 1), 7e4)).dequantize().item() == 70144.0


def test_half_and_double_precision_weights_are_taken():
    matrix = torch.randn(4, 30)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        cast = matrix.to(dtype)
        expected = Grid.parse("int4").quantize(cast.float())
        found = Grid.parse("int4").quantize(cast)
        assert torch.equal(found.codes, expected.codes)
        assert found.dequantize().dtype == torch.float32


def test_weights_at_zero_decode_to_zero_on_affine_grids():
    matrix = torch.randn(6, 50).clamp(min=-0.3)
    matrix[:, ::3] = 0
    restored = Grid.parse("int3:affine").quantize(matrix).dequantize()
    assert (restored[:, ::3] == 0).all()
