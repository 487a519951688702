"""How much may the model take? Limits that include everything that is stored, or done.

`average_bits` counts codes, scales, zero points and padding of all quantizable sites over the number of
their weights (a site left in float counts 32). `bytes` is the size of the artifact on disk, header and
all other tensors included. `bit_operations` is the sum over sites of multiplications × bits of a weight's code
× bits of an activation, for one sample, as HAWQ-V3 counts them (arXiv 2011.10680); an activation in float counts
`activation_bits`. `average_activation_bits` is the mean over the measured activation sites, each weighted by how many
numbers enter there for one sample: what is moved, and not what is multiplied, so that operands of additions count as
well. `latency` adds up a table that the caller measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from geoquant.errors import BudgetError
from geoquant.plan.latency import LatencyTable


@dataclass(frozen=True)
class Budget:
    """Upper limits on a plan; any several hold at once.

    Attributes:
        average_bits: stored bits per weight.
        bytes: size of the artifact on disk.
        bit_operations: multiplications × weight bits × activation bits, of one sample of the calibration data.
        latency: milliseconds, by `latency_table`.
        latency_table: time of each site at each grid.
        activation_bits: what an activation in float counts: 32 for float32, 16 for float16.
        average_activation_bits: bits per number that enters one of the measured activation sites.

    >>> print(Budget(average_bits=3))
    3 average bits
    >>> print(Budget(bytes=90_000, bit_operations=2e9))
    90,000 bytes and 2e+09 bit-operations
    >>> Budget()
    Traceback (most recent call last):
    ...
    geoquant.errors.BudgetError: a budget needs a limit: give average_bits, bytes, average_activation_bits, ...
    """

    average_bits: float | None = None
    bytes: int | None = None
    bit_operations: float | None = None
    latency: float | None = None
    latency_table: LatencyTable | None = None
    activation_bits: float = 32
    average_activation_bits: float | None = None

    def __post_init__(self) -> None:
        given = {
            "average_bits": self.average_bits,
            "bytes": self.bytes,
            "bit_operations": self.bit_operations,
            "latency": self.latency,
            "average_activation_bits": self.average_activation_bits,
        }
        limits = {name: value for name, value in given.items() if value is not None}
        if not limits:
            raise BudgetError(
                "a budget needs a limit: give average_bits, bytes, average_activation_bits, bit_operations or latency"
            )
        for name, value in {**limits, "activation_bits": self.activation_bits}.items():
            if not math.isfinite(value) or value <= 0:
                raise BudgetError(f"{name}={value} is no budget; give a positive number")
        if self.latency is not None and self.latency_table is None:
            raise BudgetError(f"a budget of {self.latency:g} ms needs a table of times; give latency_table too")

    @property
    def sees_activations(self) -> bool:
        """Whether a limit depends on the grids of activations, which are then chosen where they were measured.

        >>> Budget(average_bits=3).sees_activations, Budget(bit_operations=1e9).sees_activations
        (False, True)
        """
        timed = self.latency is not None and self.latency_table is not None and self.latency_table.sees_activations
        return timed or self.bit_operations is not None or self.average_activation_bits is not None

    def __str__(self) -> str:
        parts = []
        if self.average_bits is not None:
            parts.append(f"{self.average_bits:g} average bits")
        if self.average_activation_bits is not None:
            parts.append(f"{self.average_activation_bits:g} average activation bits")
        if self.bytes is not None:
            parts.append(f"{self.bytes:,} bytes")
        if self.bit_operations is not None:
            parts.append(f"{self.bit_operations:.4g} bit-operations")
        if self.latency is not None:
            parts.append(f"{self.latency:g} ms")
        return " and ".join(parts)
