"""Packed bytes against numpy's bit packing and big-integer arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geoquant.errors import FileFormatError, GridError
from geoquant.grids import pack_codes, packed_bytes, packing, unpack_codes

WIDTHS = [1, 2, 3, 4, 5, 6, 7, 8, 16, 1.6]


def random_codes(count: int, bits: float) -> torch.Tensor:
    codes = torch.randint(0, 3 if bits == 1.6 else 2 ** int(bits), (count,))
    return codes.to(torch.int32 if bits == 16 else torch.uint8)


def slow_pack(codes: list[int], bits: float) -> bytes:
    """One big integer: a bit stream for whole widths, five base-3 digits a byte for trits."""
    if bits == 1.6:
        return bytes(sum(code * 3**i for i, code in enumerate(codes[k : k + 5])) for k in range(0, len(codes), 5))
    stream = sum(code << i * int(bits) for i, code in enumerate(codes))
    return stream.to_bytes(-(-len(codes) * int(bits) // 8), "little")


@pytest.mark.parametrize("bits", WIDTHS)
@settings(max_examples=30, deadline=None)
@given(count=st.integers(0, 200), seed=st.integers(0, 2**31))
def test_bytes_are_those_of_the_definition(bits, count, seed):
    torch.manual_seed(seed)
    codes = random_codes(count, bits)
    packed = pack_codes(codes, bits)
    assert packed.numpy().tobytes() == slow_pack(codes.tolist(), bits)
    assert packed.numel() == packed_bytes(count, bits)
    assert torch.equal(unpack_codes(packed, bits, count), codes)


@pytest.mark.parametrize("bits", [b for b in WIDTHS if b not in (16, 1.6)])
def test_bytes_are_those_of_numpy_across_chunks(bits):
    count = 2 * 8 * packing._CHUNK + 13  # two whole chunks and a ragged end
    codes = random_codes(count, bits)
    expanded = np.unpackbits(codes.numpy()[:, None], axis=1, bitorder="little")[:, :bits]
    expected = np.packbits(expanded.reshape(-1), bitorder="little")
    packed = pack_codes(codes, bits)
    assert np.array_equal(packed.numpy(), expected)
    assert torch.equal(unpack_codes(packed, bits, count), codes)


@pytest.mark.parametrize("extra", [0, 1, 4, 5, 6])
def test_trits_across_chunks(extra):
    codes = random_codes(5 * packing._CHUNK + extra, 1.6)
    packed = pack_codes(codes, 1.6)
    assert packed[-1] == slow_pack(codes[len(codes) - (len(codes) % 5 or 5) :].tolist(), 1.6)[0]
    assert torch.equal(unpack_codes(packed, 1.6, len(codes)), codes)


def test_any_shape_order_and_integer_type():
    codes = torch.arange(12, dtype=torch.int64).reshape(3, 4)
    assert torch.equal(pack_codes(codes.t(), 4), pack_codes(codes.t().contiguous().reshape(-1), 4))
    assert torch.equal(unpack_codes(pack_codes(codes, 4), 4, 12), codes.reshape(-1).to(torch.uint8))


@pytest.mark.parametrize("bits", WIDTHS)
def test_a_code_too_large_is_refused_not_smeared_over_its_neighbours(bits):
    codes = torch.zeros(9, dtype=torch.int64)
    codes[4] = 3 if bits == 1.6 else 2**bits
    with pytest.raises(GridError, match=r"lie in 0\.\."):
        pack_codes(codes, bits)
    codes[4] = -1
    with pytest.raises(GridError, match="found -1"):
        pack_codes(codes, bits)


@pytest.mark.parametrize("bits", [0, 9, 1.5, 32])
def test_unknown_widths(bits):
    with pytest.raises(GridError, match="cannot be packed"):
        pack_codes(torch.zeros(3, dtype=torch.uint8), bits)
    with pytest.raises(GridError, match="cannot be packed"):
        packed_bytes(3, bits)


def test_floats_are_no_codes():
    with pytest.raises(GridError, match=r"Grid\.encode"):
        pack_codes(torch.zeros(3), 4)


@pytest.mark.parametrize("bits", WIDTHS)
def test_truncated_or_padded_bytes_are_noticed(bits):
    packed = pack_codes(random_codes(50, bits), bits)
    for wrong in (packed[:-1], torch.cat([packed, packed[:1]]), packed.int()):
        with pytest.raises(FileFormatError, match="damaged"):
            unpack_codes(wrong, bits, 50)


def test_a_byte_that_is_no_five_trits_is_noticed():
    with pytest.raises(FileFormatError, match="found 243"):
        unpack_codes(torch.tensor([242, 243], dtype=torch.uint8), 1.6, 10)
