"""Which batch does each step get, so that a run that was interrupted goes on as if it had not been?

A batch is a function of seed, epoch and place. Lists of batches are shuffled anew in each epoch; loaders are walked
again in each epoch, with torch's generator seeded by seed and epoch, and walked up to the place where a run goes on.
Whatever has a method ``batch(epoch, index)`` and a length decides for itself (`AugmentedImages` does).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from geoquant.errors import DataError
from geoquant.models import batch_size


@runtime_checkable
class Source(Protocol):
    """Batches by epoch and place."""

    def __len__(self) -> int:
        """Batches per epoch."""
        ...

    def batch(self, epoch: int, index: int) -> Any:
        """Return the batch at a place of an epoch."""
        ...


class Shuffled:
    """A sequence of batches in a new order each epoch.

    >>> source = Shuffled([torch.zeros(1), torch.ones(1)], seed=0)
    >>> sorted(float(source.batch(3, place)) for place in range(2))
    [0.0, 1.0]
    """

    def __init__(self, batches: Sequence[Any], seed: int) -> None:
        self._batches, self._seed = batches, seed
        self._order: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        return len(self._batches)

    def batch(self, epoch: int, index: int) -> Any:
        """Return the batch at a place of an epoch."""
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(mixed(self._seed, epoch))
            self._order = epoch, torch.randperm(len(self), generator=generator).tolist()
        return self._batches[self._order[1][index]]


class Walked:
    """A loader that is walked from its beginning in every epoch, in its own order."""

    def __init__(self, loader: Iterable[Any], seed: int) -> None:
        self._loader, self._seed = loader, seed
        self._count: int | None = None
        self._walk: Iterator[Any] = iter(())
        self._place = (-1, 0)

    def __len__(self) -> int:
        if self._count is None:
            sized = getattr(self._loader, "__len__", None)
            self._count = int(sized()) if sized is not None else sum(1 for _ in self._loader)
        return self._count

    def batch(self, epoch: int, index: int) -> Any:
        """Return the batch at a place of an epoch; going on is free, going elsewhere walks there.

        Raises:
            DataError: the loader ends early.
        """
        if self._place != (epoch, index):
            self.go_to(epoch, index)
        self._place = epoch, index + 1
        try:
            return next(self._walk)
        except StopIteration as error:
            raise DataError(
                f"the batches end after {index} although they said {len(self)}; give a list or a loader that can be "
                "walked once in every epoch"
            ) from error

    def go_to(self, epoch: int, index: int) -> None:
        """Walk to a place, so that the batch there comes next."""
        torch.manual_seed(mixed(self._seed, epoch))
        self._walk = iter(self._loader)
        for _ in range(index):
            next(self._walk, None)
        self._place = epoch, index


def as_source(batches: Any, seed: int) -> Source:
    """Return `batches` as a source.

    Raises:
        DataError: it is one batch, can be walked only once, or holds nothing.
    """
    if isinstance(batches, Source):
        source: Source = batches
    elif isinstance(batches, Tensor | Mapping | str) or not isinstance(batches, Iterable):
        raise DataError(f"got {type(batches).__name__} instead of batches; give a list of batches or a loader")
    elif isinstance(batches, Sequence):
        source = Shuffled(batches, seed)
    elif isinstance(batches, Iterator):
        raise DataError("these batches can be walked only once, and training walks them in every epoch; give a list")
    else:
        source = Walked(batches, seed)
    if len(source) == 0:
        raise DataError("there are no batches to train on; expected at least one")
    return source


def mixed(*numbers: int) -> int:
    """Return one seed made of several, so that neighbouring ones share nothing.

    >>> mixed(0, 1) != mixed(1, 0)
    True
    """
    total = 0
    for number in numbers:
        total = (total * 0x9E3779B97F4A7C15 + number + 1) % 2**63
        total ^= total >> 29
    return total


def part_of(batch: Any, rank: int, world: int) -> tuple[Any, float]:
    """Return every `world`-th sample of `batch` from `rank` on, and the weight of their mean loss.

    Averaged over processes, weight times mean loss is the mean loss of the whole batch.

    >>> part, weight = part_of(torch.arange(5), 1, 2)
    >>> part.tolist(), weight
    ([1, 3], 0.8)
    """
    total = batch_size(batch)
    if total < world:
        raise DataError(f"a batch of {total} samples cannot be shared by {world} processes; give larger batches")

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[rank::world] if value.dim() and len(value) == total else value
        if isinstance(value, Mapping):
            return {key: cut(each) for key, each in value.items()}
        return tuple(cut(each) for each in value) if isinstance(value, tuple | list) else value

    part = cut(batch)
    return part, batch_size(part) * world / total
