"""In which number format is a scale itself stored, and which stored numbers lie around a wished scale?

Scales are found in float64 and must be stored in few bits. A search wants both stored neighbours of a wished
scale, to keep the better one; a max-abs scale wants the one above, so that nothing clips by rounding.
Signs are kept aside: everything here is said of magnitudes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from geoquant.errors import GridError, suggest


class ScaleDtype(Protocol):
    """A way to store scales."""

    @property
    def stored_as(self) -> torch.dtype:
        """The dtype on disk."""
        ...

    @property
    def largest(self) -> float:
        """The largest scale that it holds."""
        ...

    @property
    def signed(self) -> bool:
        """Whether it holds negative scales and zero."""
        ...

    def above(self, scale: Tensor) -> Tensor:
        """Return the smallest stored number ≥ each `scale` (float64, ≥ 0), float64; may exceed `largest`."""
        ...

    def below(self, scale: Tensor) -> Tensor:
        """Return the largest stored number ≤ each `scale` (float64, ≥ 0), float64; the smallest where none is."""
        ...

    def store(self, scale: Tensor) -> Tensor:
        """Return float32 scales, all of them stored numbers, in `stored_as`."""
        ...

    def load(self, stored: Tensor) -> Tensor:
        """Return the float32 scales that `store` was given."""
        ...


def power_of_two(exponent: Tensor) -> Tensor:
    """Return 2^exponent as float64, exactly (`torch.ldexp` goes through float32 powers, which end at 2^127).

    >>> power_of_two(torch.tensor([-149, 128])).tolist() == [2.0**-149, 2.0**128]
    True
    """
    return ((exponent.long() + 1023) << 52).view(torch.float64)


@dataclass(frozen=True)
class FloatScale:
    """An IEEE float, bfloat16, or the eight-bit float e5m2 (arXiv:2209.05433).

    Eight bits a scale pay where channels are short: a channel of 64 weights spends 1/8 instead of 1/4 bit a weight.

    >>> FloatScale(torch.float16).above(torch.tensor([0.1], dtype=torch.float64)).item()
    0.10003662109375
    >>> FloatScale(torch.float16).below(torch.tensor([0.1], dtype=torch.float64)).item()
    0.0999755859375
    >>> [FloatScale(torch.float8_e5m2).above(torch.tensor([x], dtype=torch.float64)).item() for x in (0.1, 1e6)]
    [0.109375, inf]
    """

    stored_as: torch.dtype
    signed = True

    @property
    def largest(self) -> float:
        """The largest finite number."""
        return torch.finfo(self.stored_as).max

    def above(self, scale: Tensor) -> Tensor:
        """Round to nearest, and one step up where that fell short."""
        rounded = scale.clamp(max=self.largest).to(self.stored_as)
        stepped = self._step(rounded, rounded.double() < scale, 1)
        return torch.where(scale > self.largest, torch.inf, stepped)

    def below(self, scale: Tensor) -> Tensor:
        """Round to nearest, and one step down where that overshot."""
        rounded = scale.clamp(max=self.largest).to(self.stored_as)
        return self._step(rounded, rounded.double() > scale, -1)

    def _step(self, rounded: Tensor, where: Tensor, by: int) -> Tensor:
        # The bit patterns of floats of one sign are ordered as the numbers are.
        integer = {1: torch.int8, 2: torch.int16, 4: torch.int32}[self.stored_as.itemsize]
        stepped = (rounded.view(integer) + by * where.to(integer)).view(self.stored_as)
        return stepped.double()

    def store(self, scale: Tensor) -> Tensor:
        """Cast."""
        return scale.to(self.stored_as)

    def load(self, stored: Tensor) -> Tensor:
        """Cast back."""
        return stored.float()


@dataclass(frozen=True)
class PowerOfTwo:
    """e8m0 of the OCP microscaling formats (arXiv:2310.10537): 2^(code − 127), code 255 unused.

    >>> PowerOfTwo().above(torch.tensor([0.3, 0.5], dtype=torch.float64)).tolist()
    [0.5, 0.5]
    >>> PowerOfTwo().store(torch.tensor([0.5, 1.0])).tolist()
    [126, 127]
    """

    stored_as = torch.uint8
    largest = 2.0**127
    signed = False

    def above(self, scale: Tensor) -> Tensor:
        """Round the exponent up."""
        # frexp gives scale = fraction · 2^exponent with fraction in [½, 1); a power of two has fraction ½.
        fraction, exponent = torch.frexp(scale.clamp(min=2.0**-127))
        return power_of_two(exponent - (fraction == 0.5).int())

    def below(self, scale: Tensor) -> Tensor:
        """Round the exponent down."""
        held = scale.clamp(2.0**-127, self.largest)
        return power_of_two(torch.frexp(held).exponent - 1)

    def store(self, scale: Tensor) -> Tensor:
        """Keep the biased exponent."""
        return (torch.frexp(scale.double()).exponent + 126).to(torch.uint8)

    def load(self, stored: Tensor) -> Tensor:
        """Raise two to it."""
        return power_of_two(stored.int() - 127).float()


SCALE_DTYPES: dict[str, ScaleDtype] = {
    "fp16": FloatScale(torch.float16),
    "bf16": FloatScale(torch.bfloat16),
    "fp32": FloatScale(torch.float32),
    "e5m2": FloatScale(torch.float8_e5m2),
    "e8m0": PowerOfTwo(),
}


def scale_dtype(name: str) -> ScaleDtype:
    """Return the scale dtype called `name`.

    Raises:
        GridError: there is none.

    >>> scale_dtype("e8m0").stored_as
    torch.uint8
    """
    if name not in SCALE_DTYPES:
        raise GridError(f"there is no scale type named '{name}'{suggest(name, SCALE_DTYPES)}")
    return SCALE_DTYPES[name]


def stored_above(scale: Tensor, name: str) -> Tensor:
    """Return the stored number above each `scale` (float64, ≥ 0); a scale of 0 stays 0 where that can be stored.

    Raises:
        GridError: a scale is too large for the scale type.
    """
    kind = scale_dtype(name)
    above = kind.above(scale)
    if bool((above > kind.largest).any()):
        raise GridError(
            f"a scale of {float(scale.max()):.4g} does not fit {name} scales (largest {kind.largest:.6g}); "
            "use fp32 scales, for example 'int8:fp32'"
        )
    return above
