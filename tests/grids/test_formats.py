"""Levels and codes of every format, by counting and by independent arithmetic."""

from __future__ import annotations

import pytest
import torch

from geoquant.errors import GridError
from geoquant.grids import FORMATS, Binary, Float, Integer, LevelSet, Ternary, clip_limits
from geoquant.grids.formats import find_format

CODED = [name for name in FORMATS.names() if FORMATS[name].value_dtype is None]
CODED_FORMATS = [FORMATS[name] for name in CODED] + [Integer(3, narrow=True), Integer(4, affine=True)]


@pytest.mark.parametrize("format", CODED_FORMATS, ids=lambda format: ":".join(format.tokens))
def test_each_level_has_one_code_and_comes_back(format):
    levels = format.levels.float()
    codes = format.encode(levels)
    assert len(codes.unique()) == len(levels)
    assert torch.equal(format.decode(codes), levels)
    assert torch.equal(format.nearest(levels), levels)


@pytest.mark.parametrize("format", CODED_FORMATS, ids=lambda format: ":".join(format.tokens))
def test_nearest_is_decode_of_encode_and_clips(format):
    x = torch.cat(
        [torch.randn(2000) * float(format.levels[-1]), torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 1e30])]
    )
    assert torch.equal(format.nearest(x), format.decode(format.encode(x)))
    ends = format.nearest(torch.tensor([-torch.inf, torch.inf]))
    assert ends.tolist() == [float(format.levels[0]), float(format.levels[-1])]


@pytest.mark.parametrize("format", CODED_FORMATS, ids=lambda format: ":".join(format.tokens))
def test_nothing_within_reach_is_clipped(format):
    low, high = clip_limits(format)
    if not format.has_zero_point:
        assert low <= -format.reach
        assert format.reach <= high


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8, 16])
def test_integer_ranges(bits):
    half = 2 ** (bits - 1)
    assert Integer(bits).levels.tolist() == list(range(-half, half))
    assert Integer(bits, narrow=True).levels.tolist() == list(range(1 - half, half))
    assert Integer(bits, affine=True).levels.tolist() == list(range(2 * half))


def test_integer_ties_go_to_even():
    assert Integer(4).nearest(torch.tensor([0.5, 1.5, -0.5, -2.5])).tolist() == [0.0, 2.0, 0.0, -2.0]


def test_one_bit_integers_name_the_remedy():
    with pytest.raises(GridError, match="no positive level; use the binary or the ternary grid, or bits>=2"):
        Integer(1)
    with pytest.raises(GridError, match="no positive level"):
        find_format("int1")


@pytest.mark.parametrize("bits", [-3, 0, 9, 15, 17, 32])
def test_other_widths_say_what_is_possible(bits):
    with pytest.raises(GridError, match=f"2 to 8 or 16 bits, found bits={bits}"):
        Integer(bits)


def test_affine_and_narrow_exclude_each_other():
    with pytest.raises(GridError, match="cannot be narrow"):
        Integer(4, narrow=True, affine=True)


@pytest.mark.parametrize("values", [(1.0,), (-1.0, 2.0, 1.0), (0.0, 1.0), (-1.0, -0.5), (-1.0, float("nan"))])
def test_level_sets_must_ascend_through_zero(values):
    with pytest.raises(GridError, match="ascending finite numbers of both signs"):
        LevelSet("bad", values)


def test_level_set_bits_count_its_levels():
    assert [LevelSet("x", tuple(i - 0.4 * n for i in range(n))).bits for n in (2, 3, 4, 5, 16, 17)] == [
        1,
        2,
        2,
        3,
        4,
        5,
    ]


def test_unknown_format_suggests():
    with pytest.raises(GridError, match=r"no grid named 'trenary'.*'ternary'"):
        find_format("trenary")
    with pytest.raises(GridError, match="known: bf16, binary"):
        find_format("zzz")


def test_clip_limits_are_half_a_gap_beyond_the_ends():
    assert clip_limits(Integer(2)) == (-2.5, 1.5)
    assert clip_limits(Ternary()) == (-1.5, 1.5)
    assert clip_limits(Binary()) == (-2.0, 2.0)
    assert clip_limits(Float("fp4_e2m1")) == (-7.0, 7.0)
    assert clip_limits(Float("fp16")) == (-65520.0, 65520.0)  # IEEE rounds to infinity from here on
    assert clip_limits(Float("fp32")) is None
