"""What does a quantized matrix cost on disk, to the bit?

A grid lists the tensors that it stores for a matrix of some shape, and splits their size into codes, scales,
zero points and the padding of last bytes. The sum of the split is the size of the tensors: a file's header
around them is the business of whoever writes the file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class StoredTensor:
    """One tensor on disk.

    Attributes:
        suffix: its role: ``codes``, ``scales``, ``zeros`` or ``values``.
        dtype: type of its elements.
        shape: its shape.
    """

    suffix: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size of its data.

        >>> StoredTensor("scales", torch.float16, (16, 1)).bytes
        32
        """
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Storage:
    """Bits that one matrix takes, by purpose.

    >>> Storage(code_bits=1296, scale_bits=256, zero_bits=0, padding_bits=0).bytes
    194
    """

    code_bits: int
    scale_bits: int
    zero_bits: int
    padding_bits: int

    @property
    def total_bits(self) -> int:
        """The sum: 8 times `bytes`."""
        return self.code_bits + self.scale_bits + self.zero_bits + self.padding_bits

    @property
    def bytes(self) -> int:
        """Size of the stored tensors."""
        return self.total_bits // 8
