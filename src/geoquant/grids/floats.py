"""Which small floats can a code name, and which floats are stored as they are?

fp8 (e4m3, e5m2) and fp4 (e2m1) are codes under a scale, as in the OCP formats (Micikevicius et al.,
arXiv:2209.05433; microscaling, arXiv:2310.10537): their bit pattern is the code. Rounding is to nearest,
ties to even, saturating at the largest finite number; no code for NaN or infinity is ever produced.
fp16, bf16 and fp32 take no scale: the weight itself is stored.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from geoquant.errors import GridError, suggest
from geoquant.grids.formats import FORMATS, Defaults, NumberFormat
from geoquant.grids.granularity import PerGroup, Unscaled


class _Codec(Protocol):
    """The part of a `NumberFormat` in which small and stored floats differ."""

    @property
    def bits(self) -> int: ...
    @property
    def highest(self) -> float: ...
    @property
    def value_dtype(self) -> torch.dtype | None: ...
    @property
    def defaults(self) -> Defaults: ...
    def levels(self) -> Tensor | None: ...
    def nearest(self, x: Tensor) -> Tensor: ...
    def encode(self, x: Tensor) -> Tensor: ...
    def decode(self, codes: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class _Minifloat:
    """Sign, `exponent` bits and `mantissa` bits, with subnormals; finite up to `highest`."""

    exponent: int
    mantissa: int
    highest: float
    defaults: Defaults
    value_dtype: torch.dtype | None = None

    @property
    def bits(self) -> int:
        return 1 + self.exponent + self.mantissa

    @property
    def smallest_normal(self) -> float:
        return math.ldexp(1.0, 2 - (1 << self.exponent - 1))

    def nearest(self, x: Tensor) -> Tensor:
        # Masking a float32 down to its exponent gives the power of two below |x|; the gap between
        # levels there is 2^−mantissa of it, and below the smallest normal it stays that of the smallest.
        gap = (x.contiguous().view(torch.int32) & 0x7F800000).view(torch.float32)
        gap.clamp_(self.smallest_normal, 2.0**126).mul_(2.0**-self.mantissa)
        return (x / gap).round_().mul_(gap).clamp_(-self.highest, self.highest)

    def encode(self, x: Tensor) -> Tensor:
        level = self.nearest(x)
        magnitude = level.abs()
        # A float32's exponent and upper mantissa bits, rebased, are the code of a normal number;
        # a subnormal's code is its multiple of the smallest gap. Both count up from zero.
        offset = (128 - 2 ** (self.exponent - 1)) << self.mantissa
        normal = (magnitude.view(torch.int32) >> (23 - self.mantissa)).sub_(offset)
        subnormal = (magnitude * (2.0**self.mantissa / self.smallest_normal)).int()
        code = torch.where(magnitude < self.smallest_normal, subnormal, normal)
        return code.add_(level < 0, alpha=1 << self.bits - 1).to(torch.uint8)

    def decode(self, codes: Tensor) -> Tensor:
        table = _bit_patterns(self).to(codes.device)
        return table.index_select(0, codes.reshape(-1).int()).view(codes.shape)

    def levels(self) -> Tensor:
        magnitude = _bit_patterns(self)[: 2 ** (self.bits - 1)].double()
        return _mirrored(magnitude[magnitude <= self.highest])


@functools.cache
def _bit_patterns(format: _Minifloat) -> Tensor:
    """Return the number behind each code, float32; the patterns that the standard keeps for NaN are never coded."""
    magnitude = torch.arange(2 ** (format.bits - 1))
    exponent, mantissa = magnitude >> format.mantissa, magnitude & (2**format.mantissa - 1)
    fraction = mantissa.double() * 2.0**-format.mantissa + (exponent > 0)
    value = fraction * format.smallest_normal * 2.0 ** (exponent.clamp(min=1) - 1).double()
    return torch.cat([value, -value]).float()


def _mirrored(magnitude: Tensor) -> Tensor:
    """Return −m … 0 … m for ascending magnitudes that begin with 0."""
    return torch.cat([-magnitude[1:].flip(0), magnitude])


_UNSCALED = Defaults(Unscaled(), "none", "none")


@dataclass(frozen=True)
class _Stored:
    """Weights cast to a dtype and kept; saturating, so that no infinity is stored."""

    value_dtype: torch.dtype | None
    defaults: Defaults = _UNSCALED

    @property
    def dtype(self) -> torch.dtype:
        assert self.value_dtype is not None
        return self.value_dtype

    @property
    def bits(self) -> int:
        return self.dtype.itemsize * 8

    @property
    def highest(self) -> float:
        return float(torch.finfo(self.dtype).max)

    def nearest(self, x: Tensor) -> Tensor:
        return self.encode(x).float()

    def encode(self, x: Tensor) -> Tensor:
        return x.clamp(-self.highest, self.highest).to(self.dtype)

    def decode(self, codes: Tensor) -> Tensor:
        return codes.float()

    def levels(self) -> Tensor | None:
        if self.bits == 32:
            return None
        magnitude = torch.arange(2**15, dtype=torch.int16).view(self.dtype).double()
        return _mirrored(magnitude[magnitude.isfinite()])


_CODECS: dict[str, _Codec] = {
    "fp4_e2m1": _Minifloat(2, 1, 6.0, Defaults(granularity=PerGroup(32))),
    "fp8_e4m3": _Minifloat(4, 3, 448.0, Defaults()),
    "fp8_e5m2": _Minifloat(5, 2, 57344.0, Defaults()),
    "fp16": _Stored(torch.float16),
    "bf16": _Stored(torch.bfloat16),
    "fp32": _Stored(torch.float32),
}


@dataclass(frozen=True)
class Float:
    """fp4_e2m1, fp8_e4m3, fp8_e5m2 (codes under a scale), or fp16, bf16, fp32 (stored as they are).

    Raises:
        GridError: the name is none of these.

    >>> Float("fp4_e2m1").levels.tolist()[7:]
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    >>> Float("fp8_e4m3").nearest(torch.tensor([0.3, 17.0, 1000.0])).tolist()
    [0.3125, 16.0, 448.0]
    """

    name: str

    def __post_init__(self) -> None:
        if self.name not in _CODECS:
            raise GridError(f"there is no float format named '{self.name}'{suggest(self.name, _CODECS)}")

    @property
    def tokens(self) -> tuple[str, ...]:
        """The name."""
        return (self.name,)

    @property
    def bits(self) -> int:
        """Stored bits per number."""
        return _CODECS[self.name].bits

    @property
    def levels(self) -> Tensor | None:
        """All finite numbers, ascending; None for fp32."""
        return _CODECS[self.name].levels()

    @property
    def reach(self) -> float:
        """The largest finite number."""
        return _CODECS[self.name].highest

    @property
    def has_zero_point(self) -> bool:
        """False."""
        return False

    @property
    def value_dtype(self) -> torch.dtype | None:
        """The dtype of fp16, bf16 and fp32; None for the small floats."""
        return _CODECS[self.name].value_dtype

    @property
    def defaults(self) -> Defaults:
        """Groups of 32 for fp4, channels for fp8, nothing to scale for the others."""
        return _CODECS[self.name].defaults

    def option(self, token: str) -> NumberFormat | None:
        """No options."""
        return None

    def nearest(self, x: Tensor) -> Tensor:
        """Round to nearest, ties to even, saturating."""
        return _CODECS[self.name].nearest(x)

    def encode(self, x: Tensor) -> Tensor:
        """Return bit patterns (uint8), or the number itself in `value_dtype`."""
        return _CODECS[self.name].encode(x)

    def decode(self, codes: Tensor) -> Tensor:
        """Return float32."""
        return _CODECS[self.name].decode(codes)


for _name in _CODECS:
    FORMATS.register(_name, Float(_name))
