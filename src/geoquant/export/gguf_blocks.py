"""How are integer codes and scales laid into the blocks of llama.cpp?

Layouts are those that the ``gguf`` package unpacks (`gguf.quants`): its own quantizers would fit new scales, which
would round a quantized weight twice. Ternary blocks are packed by the package, whose scale for −1, 0 and 1 is one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoquant.export.gguf_types import BLOCKS, TERNARIES
from geoquant.export.protocol import need

Bytes = NDArray[np.uint8]


def pack_blocks(name: str, levels: NDArray[np.int8], scales: NDArray[np.float16]) -> Bytes:
    """Return the blocks of a matrix.

    Args:
        name: the type, such as ``Q4_0``.
        levels: (channels, fan_in) integers that the type holds; fan_in is whole blocks.
        scales: (channels, blocks) float16.

    Returns:
        (channels, bytes of a row).

    >>> pack_blocks("Q8_0", np.ones((1, 32), np.int8), np.ones((1, 1), np.float16))[0, :4].tolist()
    [0, 60, 1, 1]
    """
    count, _ = BLOCKS[name]
    blocks = levels.reshape(-1, count)
    halves = np.ascontiguousarray(scales.reshape(-1, 1)).view(np.uint8)
    packed = _ternary(name, blocks, halves) if name in TERNARIES else np.hstack([halves, *_PARTS[name](blocks)])
    return packed.reshape(len(levels), -1)


def _q8_0(levels: NDArray[np.int8]) -> tuple[Bytes, ...]:
    return (levels.view(np.uint8),)


def _q4_0(levels: NDArray[np.int8]) -> tuple[Bytes, ...]:
    return (_nibbles((levels + 8).astype(np.uint8)),)


def _q5_0(levels: NDArray[np.int8]) -> tuple[Bytes, ...]:
    codes = (levels + 16).astype(np.uint8)
    return np.packbits(codes >> 4, axis=1, bitorder="little"), _nibbles(codes & np.uint8(15))


def _nibbles(codes: Bytes) -> Bytes:
    """Put the second half of each block into the upper nibbles."""
    nibbles: Bytes = codes[:, :16] | (codes[:, 16:] << np.uint8(4))
    return nibbles


_PARTS: dict[str, Any] = {"Q4_0": _q4_0, "Q5_0": _q5_0, "Q8_0": _q8_0}


def _ternary(name: str, levels: NDArray[np.int8], halves: Bytes) -> Bytes:
    gguf = need("gguf", "gguf")
    packed: Bytes = gguf.quants.quantize(levels.astype(np.float32), gguf.GGMLQuantizationType[name])
    return np.hstack([packed[:, :-2], halves])


def unpack_blocks(packed: NDArray[Any], name: str) -> NDArray[np.float32]:
    """Return the float32 matrix in a tensor of any type that the package unpacks."""
    gguf = need("gguf", "gguf")
    matrix: NDArray[np.float32] = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[name])
    return matrix
