"""What is a batch, and are these batches fit to be measured on?

A batch is a tensor, an (inputs, targets) pair, or a mapping of keyword arguments; the inputs of a pair may be a
tensor, a tuple (positional arguments) or a mapping (keywords). Whether a model accepts a batch is for the
model room to find out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar, overload

import torch
from torch import Tensor

from geoquant.errors import DataError

Batch = Any
B = TypeVar("B", covariant=True)

_FORMS = "expected a tensor, an (inputs, targets) pair, or a mapping of keyword arguments"


class Batches(Sequence[B], Generic[B]):
    """A sequence of batches that can be walked again and again, each made when it is asked for.

    Attributes:
        samples: how many samples all batches hold together.
        description: where they come from, for reports.

    >>> halves = Batches(2, lambda i: torch.full((3, 1), float(i)), samples=6, description="a toy")
    >>> [float(batch.sum()) for batch in halves], float(halves[-1].sum()), len(halves)
    ([0.0, 3.0], 3.0, 2)
    """

    def __init__(self, count: int, make: Callable[[int], B], samples: int, description: str) -> None:
        self.samples = samples
        self.description = description
        self._count = count
        self._make = make

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> B: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[B, ...]: ...
    def __getitem__(self, index: int | slice) -> B | tuple[B, ...]:
        places = range(self._count)[index]
        return self._make(places) if isinstance(places, int) else tuple(self._make(place) for place in places)

    def __repr__(self) -> str:
        return f"Batches({self.description}, in {self._count} batches)"


def collect(batches: Iterable[Batch], limit: int | None = None) -> tuple[Batch, ...]:
    """Walk `batches` once, check every batch, and return them all.

    Args:
        batches: a list, `Batches`, a DataLoader, a generator …
        limit: stop after so many samples, cutting the last batch; all samples when None.

    Raises:
        DataError: there is no batch, a batch is of another form or holds no sample, NaN or Inf.

    >>> [len(batch) for batch in collect([torch.zeros(4, 2), torch.zeros(4, 2)], limit=6)]
    [4, 2]
    >>> collect([])
    Traceback (most recent call last):
    ...
    geoquant.errors.DataError: there are no batches; expected at least one
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit={limit} leaves no sample; it must be at least 1")
    _check_container(batches)
    kept: list[Batch] = []
    left = limit
    for index, batch in enumerate(batches):
        check(batch, index)
        if left is not None:
            batch = _head(batch, left) if samples(batch) > left else batch
            left -= samples(batch)
        kept.append(batch)
        if left == 0:
            break
    if not kept:
        raise DataError("there are no batches; expected at least one")
    return tuple(kept)


def _check_container(batches: Any) -> None:
    """Refuse single batches, whose iteration would give rows or keys that look like batches."""
    if isinstance(batches, Tensor | Mapping):
        raise DataError(f"got one {_name(batches)} instead of several batches; put it in a list: [batch]")
    if isinstance(batches, str | bytes) or not isinstance(batches, Iterable):
        raise DataError(f"got {_name(batches)} instead of batches; expected a list, a DataLoader or another iterable")


def check(batch: Batch, index: int) -> None:
    """Raise `DataError` unless `batch` has one of the known forms, holds samples, and all its numbers are finite.

    Args:
        batch: one batch.
        index: its place, for the message.

    >>> check((torch.ones(2, 3), torch.tensor([0, 1])), 0)
    >>> check(torch.tensor([1.0, float("nan")]), 7)
    Traceback (most recent call last):
    ...
    geoquant.errors.DataError: batch 7 holds 1 NaN and 0 Inf of 2 numbers in its inputs; clean the data first
    """
    _check_form(batch, index)
    if samples(batch, index) == 0:
        raise DataError(f"batch {index} holds no samples; leave it out")
    for place, leaf in _tensors(batch):
        if leaf.is_floating_point() and not bool(leaf.isfinite().all()):
            nan, inf = int(leaf.isnan().sum()), int(leaf.isinf().sum())
            raise DataError(
                f"batch {index} holds {nan} NaN and {inf} Inf of {leaf.numel()} numbers in {place}; "
                "clean the data first"
            )


def _check_form(batch: Batch, index: int) -> None:
    if isinstance(batch, Tensor):
        return
    if isinstance(batch, Mapping):
        _check_keywords(batch, index)
    elif isinstance(batch, tuple | list):
        if len(batch) != 2:
            raise DataError(
                f"batch {index} is a {_name(batch)} of {len(batch)}; {_FORMS} "
                "(several inputs go together: ((a, b), targets))"
            )
        inputs, targets = batch
        if isinstance(inputs, Mapping):
            _check_keywords(inputs, index)
        elif not isinstance(inputs, Tensor | tuple | list):
            raise DataError(
                f"batch {index} is a pair whose inputs are {_name(inputs)}; expected a tensor, a tuple or a mapping"
            )
        if not isinstance(targets, Tensor):
            raise DataError(f"batch {index} is a pair whose targets are {_name(targets)}; expected a tensor")
    else:
        raise DataError(f"batch {index} is {_name(batch)}; {_FORMS}")


def _check_keywords(batch: Mapping[Any, Any], index: int) -> None:
    strange = [key for key in batch if not isinstance(key, str)]
    if strange:
        raise DataError(f"batch {index} is a mapping with the key {strange[0]!r}; expected names of keyword arguments")


def samples(batch: Batch, index: int = 0) -> int:
    """Return how many samples `batch` holds: the first axis of its first tensor that has one.

    >>> samples({"input_ids": torch.zeros(3, 7)})
    3
    """
    for _, leaf in _tensors(batch):
        if leaf.dim():
            return len(leaf)
    raise DataError(f"batch {index} ({_name(batch)}) holds no tensor with a batch axis; {_FORMS}")


def _head(batch: Batch, count: int) -> Batch:
    """Return the first `count` samples: cut every tensor that has one entry per sample."""
    total = samples(batch)

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[:count] if value.dim() and len(value) == total else value
        if isinstance(value, Mapping):
            return {key: cut(each) for key, each in value.items()}
        if isinstance(value, tuple | list):
            return tuple(cut(each) for each in value)
        return value

    return cut(batch)


def _tensors(value: Any, place: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield (where it is, tensor) for every tensor inside a batch."""
    for where, leaf in _leaves(value, place):
        if isinstance(leaf, Tensor):
            yield where, leaf


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from _leaves(value[key], f"{place or 'its'} '{key}'")
    elif isinstance(value, tuple | list):
        names = ("its inputs", "its targets") if not place and len(value) == 2 else ()
        for i, each in enumerate(value):
            yield from _leaves(each, names[i] if names else f"{place or 'its'} [{i}]")
    else:
        yield place or "its inputs", value


def fingerprint(batches: Iterable[Batch]) -> str:
    """Return the SHA-256 of all values, types, shapes, names and batch borders, in hexadecimal.

    The device and the memory order of a tensor do not count.

    >>> a = fingerprint([torch.zeros(2, 3)])
    >>> a == fingerprint([torch.zeros(2, 3)]), a == fingerprint([torch.zeros(3, 2)])
    (True, False)
    """
    total = hashlib.sha256()
    for index, batch in enumerate(batches):
        for place, leaf in _leaves(batch):
            if isinstance(leaf, Tensor):
                total.update(f"{index}|{place}|{leaf.dtype}|{tuple(leaf.shape)}|".encode())
                flat = leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
                total.update(flat.numpy().data)
            else:
                total.update(f"{index}|{place}|{leaf!r}|".encode())
    return total.hexdigest()


def _name(value: Any) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__.split('.')[0]}.{kind.__name__}"
