"""Which numbers can a code name?

A format is a set of levels at scale 1 and the way codes name them: unsigned codes count the levels up
from the lowest (integers, binary, ternary, level lists) or are the bit pattern of a small float. A weight
w is stored as the code of the level nearest to x = w/scale + zero, and read as scale · (level − zero). Here
lives only x; who shares a scale and how it is found is asked in `geoquant.grids.granularity` and
`geoquant.grids.scales`.

Formats are open: whatever satisfies `NumberFormat` and is registered in `FORMATS` (or through the entry
point group ``geoquant.grid``) can be named in `Grid.parse`. `LevelSet` makes one from a list of numbers.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from geoquant.errors import GridError, suggest
from geoquant.grids.granularity import Granularity, PerChannel
from geoquant.grids.packing import TRIT_BITS
from geoquant.registry import Registry


@dataclass(frozen=True)
class Defaults:
    """What a grid of some format uses where its name says nothing."""

    granularity: Granularity = field(default_factory=PerChannel)
    scaling: str = "mse"
    scale_dtype: str = "fp16"


class NumberFormat(Protocol):
    """A set of levels and the codes that name them. `x` is a weight in units of its scale, float32.

    A frozen, hashable value; only `encode`, `decode` and `nearest` see tensors.
    """

    def __hash__(self) -> int:
        """Equal formats are one format."""
        ...

    @property
    def tokens(self) -> tuple[str, ...]:
        """Its name in a grid's name, then its options: ``("int3", "narrow")``."""
        ...

    @property
    def bits(self) -> float:
        """Stored bits per code: 1 to 8, 16, 1.6 (trits), or the width of `value_dtype`."""
        ...

    @property
    def levels(self) -> Tensor | None:
        """All levels, ascending, float64; None where every float32 is one."""
        ...

    @property
    def reach(self) -> float:
        """The magnitude up to which no x of either sign is clipped: max-abs scales are max|w| / reach."""
        ...

    @property
    def has_zero_point(self) -> bool:
        """Whether an integer zero point, itself one of the codes, shifts the levels."""
        ...

    @property
    def value_dtype(self) -> torch.dtype | None:
        """The dtype in which weights are stored as they are, without codes and scales; None for codes."""
        ...

    @property
    def defaults(self) -> Defaults:
        """What a grid of this format uses unless told otherwise."""
        ...

    def option(self, token: str) -> NumberFormat | None:
        """Return the variant of this format that `token` asks for, None when it knows no such option."""
        ...

    def nearest(self, x: Tensor) -> Tensor:
        """Return the level nearest to each x; beyond the ends, the end level."""
        ...

    def encode(self, x: Tensor) -> Tensor:
        """Return the code of the nearest level: uint8, int32 for 16 bits, or `value_dtype`."""
        ...

    def decode(self, codes: Tensor) -> Tensor:
        """Return the level that each code names, float32."""
        ...


class _Coded:
    """What the formats with counted or looked-up codes have in common."""

    value_dtype: torch.dtype | None = None
    defaults = Defaults()

    @property
    def has_zero_point(self) -> bool:
        """No zero point."""
        return False

    def option(self, token: str) -> NumberFormat | None:
        """No options."""
        return None


@dataclass(frozen=True)
class Integer(_Coded):
    """2^b consecutive integers: symmetric full range, narrow (one level fewer), or affine (with a zero point).

    Symmetric full range is [−2^(b−1), 2^(b−1)−1]. Its max-abs scale is 2·max|w| / (2^b − 1), so that no weight
    lies further than half a step from a level. Narrow is [−(2^(b−1)−1), 2^(b−1)−1] with scale
    max|w| / (2^(b−1)−1); see docs/sources.md, "Curvature-Guided Transformer Quantization". Affine is
    [0, 2^b−1] with an integer zero point in the same range (Jacob et al., arXiv:1712.05877).

    Raises:
        GridError: `bits` is not 2 to 8 or 16, or both `narrow` and `affine` are asked for.

    >>> Integer(3).levels.tolist()
    [-4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0]
    >>> Integer(3).encode(torch.tensor([-9.0, -0.6, 2.5, 9.0])).tolist()
    [0, 3, 6, 7]
    """

    bits: int
    narrow: bool = False
    affine: bool = False

    def __post_init__(self) -> None:
        if self.bits == 1:
            raise GridError(
                "`bits=1` leaves an integer grid with no positive level; use the binary or the ternary grid, or bits>=2"
            )
        if self.bits not in (2, 3, 4, 5, 6, 7, 8, 16):
            raise GridError(f"an integer grid has 2 to 8 or 16 bits, found bits={self.bits}; choose one of those")
        if self.narrow and self.affine:
            raise GridError("an affine grid uses every code, so it cannot be narrow; drop one of the two options")

    @property
    def tokens(self) -> tuple[str, ...]:
        """``int<bits>``, then ``narrow`` or ``affine``."""
        return (f"int{self.bits}", *(["narrow"] * self.narrow), *(["affine"] * self.affine))

    @property
    def low(self) -> int:
        """The lowest level."""
        return 0 if self.affine else self.narrow - (1 << self.bits - 1)

    @property
    def high(self) -> int:
        """The highest level."""
        return (1 << self.bits) - 1 if self.affine else (1 << self.bits - 1) - 1

    @property
    def levels(self) -> Tensor:
        """The integers from `low` to `high`."""
        return torch.arange(self.low, self.high + 1, dtype=torch.float64)

    @property
    def reach(self) -> float:
        """`high`, half a step more for the full range (where it is the middle between both ends)."""
        return (self.high - self.low) / 2

    @property
    def has_zero_point(self) -> bool:
        """True for affine."""
        return self.affine

    def option(self, token: str) -> NumberFormat | None:
        """``narrow`` or ``affine``."""
        return replace(self, **{token: True}) if token in ("narrow", "affine") else None

    def nearest(self, x: Tensor) -> Tensor:
        """Round to the nearest integer, ties to even, and clip."""
        return x.round().clamp_(self.low, self.high)

    def encode(self, x: Tensor) -> Tensor:
        """Count the levels up from the lowest."""
        return self.nearest(x).sub_(self.low).to(torch.int32 if self.bits == 16 else torch.uint8)

    def decode(self, codes: Tensor) -> Tensor:
        """Count back."""
        return codes.float().add_(self.low)


@dataclass(frozen=True)
class Ternary(_Coded):
    """Three levels −1, 0, 1, stored five to a byte (1.6 bits each); see Li et al., arXiv:1605.04711.

    >>> Ternary().encode(torch.tensor([-0.7, 0.2, 3.0])).tolist()
    [0, 1, 2]
    """

    tokens = ("ternary",)
    bits = TRIT_BITS
    reach = 1.0

    @property
    def levels(self) -> Tensor:
        """−1, 0, 1."""
        return torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)

    def nearest(self, x: Tensor) -> Tensor:
        """Round and clip; a half goes to 0."""
        return x.round().clamp_(-1, 1)

    def encode(self, x: Tensor) -> Tensor:
        """0, 1 or 2."""
        return self.nearest(x).add_(1).to(torch.uint8)

    def decode(self, codes: Tensor) -> Tensor:
        """−1, 0 or 1."""
        return codes.float().sub_(1)


@dataclass(frozen=True)
class Binary(_Coded):
    """Two levels −1 and 1, one bit each; zero goes to 1. See Rastegari et al., arXiv:1603.05279.

    >>> Binary().encode(torch.tensor([-0.7, 0.0, 3.0])).tolist()
    [0, 1, 1]
    """

    tokens = ("binary",)
    bits = 1
    reach = 1.0

    @property
    def levels(self) -> Tensor:
        """−1, 1."""
        return torch.tensor([-1.0, 1.0], dtype=torch.float64)

    def nearest(self, x: Tensor) -> Tensor:
        """Take the sign, 1 for zero."""
        return (x >= 0).to(x.dtype).mul_(2).sub_(1)

    def encode(self, x: Tensor) -> Tensor:
        """0 or 1."""
        return (x >= 0).to(torch.uint8)

    def decode(self, codes: Tensor) -> Tensor:
        """−1 or 1."""
        return codes.float().mul_(2).sub_(1)


@dataclass(frozen=True)
class LevelSet(_Coded):
    """Any ascending list of 2 to 256 numbers as levels: the short way to a format of one's own.

    Raises:
        GridError: the values are not 2 to 256 ascending finite numbers of both signs.

    >>> LevelSet("thirds", (-1.0, 0.0, 0.5, 2.0)).encode(torch.tensor([-9.0, 0.2, 0.3, 1.4])).tolist()
    [0, 1, 2, 3]
    """

    name: str
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        ascending = all(low < high for low, high in itertools.pairwise(self.values))
        if not (2 <= len(self.values) <= 256 and ascending and -float("inf") < self.values[0] < 0 < self.values[-1]):
            raise GridError(
                f"the levels of '{self.name}' must be 2 to 256 ascending finite numbers of both signs; "
                f"found {len(self.values)} from {self.values[:1]} to {self.values[-1:]}"
            )

    @property
    def tokens(self) -> tuple[str, ...]:
        """The name."""
        return (self.name,)

    @property
    def bits(self) -> int:
        """Enough for the number of levels."""
        return (len(self.values) - 1).bit_length()

    @property
    def levels(self) -> Tensor:
        """The values."""
        return torch.tensor(self.values, dtype=torch.float64)

    @property
    def reach(self) -> float:
        """The smaller of the two ends."""
        return min(-self.values[0], self.values[-1])

    def encode(self, x: Tensor) -> Tensor:
        """Count the midpoints below x; a tie goes to the lower level."""
        levels = self.levels
        middles = ((levels[1:] + levels[:-1]) / 2).to(x)
        return torch.bucketize(x.contiguous(), middles).to(torch.uint8)

    def decode(self, codes: Tensor) -> Tensor:
        """Look the level up."""
        levels = self.levels.to(codes.device, torch.float32)
        return levels.index_select(0, codes.reshape(-1).int()).view(codes.shape)

    def nearest(self, x: Tensor) -> Tensor:
        """Encode and decode."""
        return self.decode(self.encode(x))


FORMATS: Registry[NumberFormat] = Registry("grid")
_BUILT_IN: list[NumberFormat] = [*(Integer(bits) for bits in (2, 3, 4, 5, 6, 7, 8, 16)), Binary(), Ternary()]
for _format in _BUILT_IN:
    FORMATS.register(_format.tokens[0], _format)


def find_format(name: str) -> NumberFormat:
    """Return the registered format called `name`.

    Raises:
        GridError: there is none.

    >>> find_format("int4")
    Integer(bits=4, narrow=False, affine=False)
    """
    if name in FORMATS.names():
        return FORMATS[name]
    if name.startswith("int") and name[3:].isdecimal() and len(name) < 8:
        return Integer(int(name[3:]))  # which says what is wrong with the width
    raise GridError(f"there is no grid named '{name}'{suggest(name, FORMATS.names()) or _known()}")


def _known() -> str:
    return f" (known: {', '.join(FORMATS.names())})"


@functools.cache
def clip_limits(format: NumberFormat) -> tuple[float, float] | None:
    """Return the x between which nothing is clipped: the end levels and half of the last gap beyond them.

    None where every float32 is a level.

    >>> clip_limits(Integer(3)), clip_limits(Binary())
    ((-4.5, 3.5), (-2.0, 2.0))
    """
    levels = format.levels
    if levels is None:
        return None
    low, second, last, high = (float(levels[i]) for i in (0, 1, -2, -1))
    return low - (second - low) / 2, high + (high - last) / 2
