"""Small floats against PyTorch's own casts and the published tables of levels."""

from __future__ import annotations

import pytest
import torch

from geoquant.errors import GridError
from geoquant.grids import Float

DTYPES = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}


def hard_numbers(highest: float) -> torch.Tensor:
    """Random float32 bit patterns, every level's neighbourhood, and every tie."""
    patterns = torch.randint(-(2**31), 2**31 - 1, (200_000,), dtype=torch.int64).to(torch.int32).view(torch.float32)
    spread = torch.randn(100_000) * torch.logspace(-12, 12, 100_000, base=2.0)
    x = torch.cat([patterns, spread])
    return x[x.isfinite() & (x.abs() <= highest)]


@pytest.mark.parametrize("name", DTYPES)
def test_codes_are_those_of_torch(name):
    format, dtype = Float(name), DTYPES[name]
    levels = format.levels.float()
    ties = (levels[1:] + levels[:-1]) / 2
    around = torch.cat(
        [levels, ties, ties.nextafter(torch.tensor(torch.inf)), ties.nextafter(torch.tensor(-torch.inf))]
    )
    x = torch.cat([hard_numbers(format.reach), around])
    expected = x.to(dtype)
    assert torch.equal(format.nearest(x), expected.float())
    positive = format.nearest(x) != 0  # a negative zero is stored as the positive one
    assert torch.equal(format.encode(x)[positive], expected.view(torch.uint8)[positive])
    assert torch.equal(format.decode(expected.view(torch.uint8)), expected.float())


def test_fp4_levels_and_ties():
    format = Float("fp4_e2m1")
    assert format.levels.tolist() == [-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6]
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])  # each goes to the even code
    assert format.nearest(ties).tolist() == [0, 1, 1, 2, 2, 4, 4]
    assert format.encode(-format.levels[7:].float()).tolist() == [0, 9, 10, 11, 12, 13, 14, 15]


@pytest.mark.parametrize("name", ["fp4_e2m1", "fp8_e4m3", "fp8_e5m2"])
def test_saturates_and_never_codes_nan(name):
    format = Float(name)
    codes = format.encode(torch.tensor([torch.inf, -torch.inf, 3e38, 2 * format.reach]))
    assert format.decode(codes).tolist() == [format.reach, -format.reach, format.reach, format.reach]


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_stored_floats_are_casts(name, dtype):
    x = hard_numbers(6e4)
    assert torch.equal(Float(name).encode(x), x.to(dtype))
    assert torch.equal(Float(name).nearest(x), x.to(dtype).float())


def test_levels_of_half_precision_are_all_finite_numbers():
    levels = Float("fp16").levels
    assert len(levels) == 2 * (31 * 1024 - 1) + 1
    assert levels[-1] == 65504
    assert (levels.diff() > 0).all()


def test_unknown_float():
    with pytest.raises(GridError, match="'fp8_e4m3'"):
        Float("fp8_e4m4")
