"""How is a batch cut into smaller batches? Sums over samples do not mind, and memory does.

Only plain batches are cut: a tensor, an (inputs, targets) pair or a mapping in which every tensor has one
row per sample. Any other batch stays whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

_CONSTANTS = (str, int, float, bool, type(None))


def split(batch: Any, size: int) -> tuple[Any, ...]:
    """Cut `batch` into pieces of at most `size` samples, or return it whole.

    >>> import torch
    >>> [len(part[0]) for part in split((torch.zeros(5, 2), torch.zeros(5)), 2)]
    [2, 2, 1]
    """
    rows = _rows(batch)
    if rows is None or rows <= size:
        return (batch,)
    return tuple(_slice(batch, start, start + size) for start in range(0, rows, size))


def _rows(batch: Any) -> int | None:
    """Return the number of rows that all tensors share, or None."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() > 0 else None
    if isinstance(batch, Mapping):
        parts = [part for part in batch.values() if not isinstance(part, _CONSTANTS)]
    elif type(batch) in (tuple, list):
        parts = [part for part in batch if part is not None]
    else:
        return None
    found = {_rows(part) for part in parts}
    return found.pop() if len(found) == 1 else None


def _slice(batch: Any, start: int, stop: int) -> Any:
    if isinstance(batch, Tensor):
        return batch[start:stop]
    if isinstance(batch, Mapping):
        return {key: _slice(part, start, stop) for key, part in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(_slice(part, start, stop) for part in batch)
    return batch
