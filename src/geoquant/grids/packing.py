"""How do codes of any width become bytes without a wasted bit, and come back?

Codes of b = 1..8 or 16 bits form one little-endian bit stream: code i takes the bits [i·b, (i+1)·b), so
eight codes take exactly b bytes and only the last byte of a tensor may hold padding (zeros). Ternary codes
("trits") go five to a byte in base 3, 1.6 bits each, since 3⁵ = 243 fits a byte.

Eight codes are squeezed side by side inside one 64-bit word by three shift-and-mask steps (neighbours,
pairs of neighbours, halves): the cost per code does not depend on b, and a chunk stays inside the
processor's cache. Packing is work on a file's bytes, done on the CPU; tensors elsewhere are brought there.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geoquant.errors import FileFormatError, GridError

TRIT_BITS = 1.6
_CHUNK = 1 << 15  # words of eight codes: 256 KiB, so that a chunk and its temporaries stay in the L2 cache
_Words = NDArray[np.uint64]
_Bytes = NDArray[np.uint8]


def code_bits(count: int, bits: float) -> int:
    """Return how many bits `count` codes of `bits` bits take, a begun bit counted whole.

    >>> code_bits(27, 3), code_bits(27, 1.6)
    (81, 44)
    """
    return -(-8 * count // 5) if bits == TRIT_BITS else count * _whole(bits)


def packed_bytes(count: int, bits: float) -> int:
    """Return how many bytes `count` codes of `bits` bits take, the last byte's padding included.

    >>> packed_bytes(27, 3), packed_bytes(27, 1.6)
    (11, 6)
    """
    return -(-code_bits(count, bits) // 8)


def pack_codes(codes: Tensor, bits: float) -> Tensor:
    """Pack `codes` densely, in row-major order.

    Args:
        codes: integers in 0..2^bits − 1 (0..2 for 1.6 bits), any shape; uint8, or int32 for 16 bits.
        bits: 1 to 8, 16, or 1.6 for trits.

    Returns:
        uint8, (packed_bytes(codes.numel(), bits),), on the CPU.

    Raises:
        GridError: `bits` is no such width, or a code does not fit it.

    >>> pack_codes(torch.tensor([1, 2, 3], dtype=torch.uint8), 4).tolist()  # 0x21, 0x03
    [33, 3]
    >>> pack_codes(torch.tensor([2, 1, 0, 0, 1], dtype=torch.uint8), 1.6).tolist()  # 2 + 1·3 + 1·81
    [86]
    """
    _check_codes(codes, bits)
    flat = codes.detach().cpu().reshape(-1)
    if bits == 16:
        return torch.from_numpy(flat.numpy().astype("<u2").view(np.uint8))
    narrow = np.ascontiguousarray(flat.to(torch.uint8).numpy())
    return torch.from_numpy(_pack_trits(narrow) if bits == TRIT_BITS else _pack_bits(narrow, _whole(bits)))


def unpack_codes(packed: Tensor, bits: float, count: int) -> Tensor:
    """Return the `count` codes that `pack_codes` packed: uint8, or int32 for 16 bits, (count,).

    Raises:
        GridError: `bits` is no width that can be packed.
        FileFormatError: `packed` is not uint8, has the wrong length, or holds a byte that is no five trits.

    >>> unpack_codes(torch.tensor([33, 3], dtype=torch.uint8), 4, 3).tolist()
    [1, 2, 3]
    """
    expected = packed_bytes(count, bits)
    if packed.dtype != torch.uint8 or packed.numel() != expected:
        raise FileFormatError(
            f"{count} codes of {bits:g} bits take {expected} bytes (uint8), "
            f"found {packed.numel()} numbers of type {packed.dtype}; the stored tensor is damaged"
        )
    flat = np.ascontiguousarray(packed.detach().cpu().reshape(-1).numpy())
    if bits == 16:
        return torch.from_numpy(flat.view("<u2").astype(np.int32))
    return torch.from_numpy(
        _unpack_trits(flat, count) if bits == TRIT_BITS else _unpack_bits(flat, _whole(bits), count)
    )


def _whole(bits: float) -> int:
    if bits not in (1, 2, 3, 4, 5, 6, 7, 8, 16):
        raise GridError(f"codes of {bits:g} bits cannot be packed; expected 1 to 8, 16, or {TRIT_BITS} for ternary")
    return int(bits)


def _check_codes(codes: Tensor, bits: float) -> None:
    highest = 2 if bits == TRIT_BITS else 2 ** _whole(bits) - 1
    if codes.is_floating_point() or codes.is_complex():
        raise GridError(f"codes must be integers, found {codes.dtype}; use Grid.encode to make codes of weights")
    if codes.numel() == 0 or (codes.dtype == torch.uint8 and bits == 8):
        return
    low, high = (int(end) for end in torch.aminmax(codes))
    if low < 0 or high > highest:
        raise GridError(f"codes of {bits:g} bits lie in 0..{highest}, found {low}..{high}")


@functools.cache
def _merges(bits: int) -> tuple[tuple[int, np.uint64, np.uint64], ...]:
    """Return the three merges (gap, low lanes, high lanes): lanes double, occupied bits stay adjacent."""
    merges = []
    for step in range(3):
        lane, used = 16 << step, bits << step
        low = sum(((1 << used) - 1) << start for start in range(0, 64, lane))
        merges.append((lane // 2 - used, np.uint64(low), np.uint64((low << used) & (2**64 - 1))))
    return tuple(merges)


def _squeeze(words: _Words, bits: int, spare: _Words) -> None:
    """Move eight codes, one a byte, together into the low 8·bits bits of each word, in place."""
    for gap, low, high in _merges(bits):
        np.right_shift(words, np.uint64(gap), out=spare)
        np.bitwise_and(spare, high, out=spare)
        np.bitwise_and(words, low, out=words)
        np.bitwise_or(words, spare, out=words)


def _spread(words: _Words, bits: int, spare: _Words) -> None:
    """Undo `_squeeze`, in place."""
    for gap, low, high in reversed(_merges(bits)):
        np.bitwise_and(words, high, out=spare)
        np.left_shift(spare, np.uint64(gap), out=spare)
        np.bitwise_and(words, low, out=words)
        np.bitwise_or(words, spare, out=words)


def _pack_bits(codes: _Bytes, bits: int) -> _Bytes:
    packed = np.empty(packed_bytes(len(codes), bits), np.uint8)
    words, spare = np.empty(_CHUNK, "<u8"), np.empty(_CHUNK, "<u8")
    for start in range(0, len(codes), 8 * _CHUNK):
        part = codes[start : start + 8 * _CHUNK]
        size = -(-len(part) // 8)
        chunk = words[:size]
        chunk[-1] = 0  # the codes that fill the last word up
        chunk.view(np.uint8)[: len(part)] = part
        _squeeze(chunk, bits, spare[:size])
        _copy_columns(chunk.view(np.uint8).reshape(-1, 8), packed[start // 8 * bits :][: size * bits], bits)
    return packed


def _copy_columns(lanes: _Bytes, packed: _Bytes, bits: int) -> None:
    """Copy the low `bits` bytes of each word (words, 8) to `packed`, whose last word may be cut short."""
    # One strided copy per byte of a word: numpy's copy of (words, bits) at once is three times slower.
    for column in range(bits):
        target = packed[column::bits]
        target[:] = lanes[: len(target), column]


def _unpack_bits(packed: _Bytes, bits: int, count: int) -> _Bytes:
    codes = np.empty(count, np.uint8)
    words, spare = np.empty(_CHUNK, "<u8"), np.empty(_CHUNK, "<u8")
    for start in range(0, count, 8 * _CHUNK):
        target = codes[start : start + 8 * _CHUNK]
        size = -(-len(target) // 8)
        chunk = words[:size]
        chunk[:] = 0
        part = packed[start // 8 * bits :][: size * bits]
        lanes = chunk.view(np.uint8).reshape(-1, 8)
        for column in range(bits):
            source = part[column::bits]
            lanes[: len(source), column] = source
        _spread(chunk, bits, spare[:size])
        target[:] = chunk.view(np.uint8)[: len(target)]
    return codes


def _pack_trits(codes: _Bytes) -> _Bytes:
    packed = np.zeros(packed_bytes(len(codes), TRIT_BITS), np.uint8)
    for start in range(0, len(packed), _CHUNK):
        target = packed[start : start + _CHUNK]
        part = codes[5 * start : 5 * (start + _CHUNK)]
        for digit in (4, 3, 2, 1, 0):  # Horner's rule in base 3
            column = part[digit::5]
            target *= 3
            target[: len(column)] += column
    return packed


@functools.cache
def _trits_of_byte() -> _Bytes:
    """Return (243, 5): the five base-3 digits of each byte, the lowest first."""
    return (np.arange(243)[:, None] // 3 ** np.arange(5) % 3).astype(np.uint8)


def _unpack_trits(packed: _Bytes, count: int) -> _Bytes:
    if len(packed) and (worst := int(packed.max())) > 242:
        raise FileFormatError(f"a byte of five trits lies in 0..242, found {worst}; the stored tensor is damaged")
    codes = np.empty((len(packed), 5), np.uint8)
    for start in range(0, len(packed), _CHUNK):
        np.take(
            _trits_of_byte(), packed[start : start + _CHUNK], axis=0, out=codes[start : start + _CHUNK], mode="clip"
        )
    return codes.reshape(-1)[:count]
