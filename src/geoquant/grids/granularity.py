"""Which weights share one scale?

A weight matrix is (channels, fan_in). One scale may serve all of it, a channel, or a group of consecutive
weights of a channel. A granularity knows how many scales that makes, cuts a matrix into the rows that
share one, and spreads the scales back over the weights. What the scales should be is another question:
see `geoquant.grids.scales`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from geoquant.errors import GridError

Shape = tuple[int, int]


class Granularity(Protocol):
    """How the weights of a (channels, fan_in) matrix share scales."""

    @property
    def token(self) -> str:
        """Its name inside a grid's name, such as ``group64``."""
        ...

    @property
    def scaled(self) -> bool:
        """Whether there is anything to scale."""
        ...

    def shape(self, matrix: Shape) -> Shape:
        """Return the shape of the scales of a matrix of shape `matrix`."""
        ...

    def rows(self, matrix: Tensor) -> tuple[Tensor, ...]:
        """Cut (channels, fan_in) into matrices (rows, length) with one scale a row."""
        ...

    def gather(self, parts: Sequence[Tensor], matrix: Shape) -> Tensor:
        """Put values per row, one tensor (rows,) for each matrix of `rows`, into the shape of the scales."""
        ...

    def expand(self, values: Tensor, fan_in: int) -> Tensor:
        """Spread values of the shape of the scales so that they broadcast against (channels, fan_in)."""
        ...


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole matrix.

    >>> PerTensor().shape((16, 27))
    (1, 1)
    """

    token = "tensor"
    scaled = True

    def shape(self, matrix: Shape) -> Shape:
        """Return (1, 1)."""
        return (1, 1)

    def rows(self, matrix: Tensor) -> tuple[Tensor, ...]:
        """Return the matrix as one row."""
        return (matrix.reshape(1, -1),)

    def gather(self, parts: Sequence[Tensor], matrix: Shape) -> Tensor:
        """Return the one value as (1, 1)."""
        return parts[0].reshape(1, 1)

    def expand(self, values: Tensor, fan_in: int) -> Tensor:
        """Return (1, 1), which broadcasts as it is."""
        return values


@dataclass(frozen=True)
class Unscaled(PerTensor):
    """No scale: formats such as fp16 store each weight as it is. Stands in as one scale of exactly 1."""

    token = "unscaled"
    scaled = False


@dataclass(frozen=True)
class PerChannel:
    """One scale for each channel (row).

    >>> PerChannel().shape((16, 27))
    (16, 1)
    """

    token = "channel"
    scaled = True

    def shape(self, matrix: Shape) -> Shape:
        """Return (channels, 1)."""
        return (matrix[0], 1)

    def rows(self, matrix: Tensor) -> tuple[Tensor, ...]:
        """Return the matrix itself."""
        return (matrix,)

    def gather(self, parts: Sequence[Tensor], matrix: Shape) -> Tensor:
        """Return (channels, 1)."""
        return parts[0].reshape(-1, 1)

    def expand(self, values: Tensor, fan_in: int) -> Tensor:
        """Return (channels, 1), which broadcasts as it is."""
        return values


@dataclass(frozen=True)
class PerGroup:
    """One scale for each `size` consecutive weights of a channel; a channel's last group may be shorter.

    >>> PerGroup(8).shape((16, 27))
    (16, 4)
    >>> [tuple(part.shape) for part in PerGroup(8).rows(torch.zeros(16, 27))]
    [(48, 8), (16, 3)]
    """

    size: int
    scaled = True

    def __post_init__(self) -> None:
        if self.size < 1:
            raise GridError(f"a group of {self.size} weights is empty; use group1 or more, for example group64")

    @property
    def token(self) -> str:
        """``group<size>``."""
        return f"group{self.size}"

    def shape(self, matrix: Shape) -> Shape:
        """Return (channels, groups), the short last group included."""
        return (matrix[0], -(-matrix[1] // self.size))

    def rows(self, matrix: Tensor) -> tuple[Tensor, ...]:
        """Return the whole groups as (channels * groups, size), then the short ones as (channels, rest)."""
        whole = matrix.shape[1] // self.size * self.size
        parts = matrix[:, :whole].reshape(-1, self.size), matrix[:, whole:]
        return tuple(part for part in parts if part.numel())

    def gather(self, parts: Sequence[Tensor], matrix: Shape) -> Tensor:
        """Return (channels, groups)."""
        return torch.cat([part.reshape(matrix[0], -1) for part in parts], 1)

    def expand(self, values: Tensor, fan_in: int) -> Tensor:
        """Return (channels, fan_in): each value repeated over its group."""
        return values.repeat_interleave(self.size, 1)[:, :fan_in]


def parse_granularity(token: str) -> Granularity | None:
    """Return the granularity that `token` names, or None when it names none.

    >>> parse_granularity("group64")
    PerGroup(size=64)
    """
    if match := re.fullmatch(r"group(\d{1,9})", token):
        return PerGroup(int(match[1]))
    simple: dict[str, Granularity] = {"tensor": PerTensor(), "channel": PerChannel()}
    return simple.get(token)
