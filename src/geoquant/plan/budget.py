"""How much may the model take? Limits that include everything that is stored.

`average_bits` counts codes, scales, zero points and padding of all quantizable sites over the number of
their weights (a site left in float counts 32). `bytes` is the size of the artifact on disk, header and
all other tensors included.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from geoquant.errors import BudgetError


@dataclass(frozen=True)
class Budget:
    """Upper limits on a plan; several hold at once.

    >>> print(Budget(average_bits=3))
    3 average bits
    >>> print(Budget(bytes=90_000))
    90,000 bytes
    >>> Budget()
    Traceback (most recent call last):
    ...
    geoquant.errors.BudgetError: a budget needs a limit: give average_bits, bytes, or both
    """

    average_bits: float | None = None
    bytes: int | None = None

    def __post_init__(self) -> None:
        given = {"average_bits": self.average_bits, "bytes": self.bytes}
        limits = {name: value for name, value in given.items() if value is not None}
        if not limits:
            raise BudgetError("a budget needs a limit: give average_bits, bytes, or both")
        for name, value in limits.items():
            if not math.isfinite(value) or value <= 0:
                raise BudgetError(f"{name}={value} is no budget; give a positive number")

    def __str__(self) -> str:
        parts = []
        if self.average_bits is not None:
            parts.append(f"{self.average_bits:g} average bits")
        if self.bytes is not None:
            parts.append(f"{self.bytes:,} bytes")
        return " and ".join(parts)
