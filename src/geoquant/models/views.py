"""How is a weight tensor seen as a matrix (channels, fan_in)?

A channel is what gets its own scale: an output unit of a linear or convolution layer, a row of an
embedding. A view is written as a short string, so that plans can store it:

- ``rows``: the first axis counts channels (Linear, Conv, Embedding).
- ``columns``: the second axis counts channels (weights stored as (in, out)).
- ``stacked``: the first two axes together count channels (a stack of matrices, such as experts).
- ``transposed:G``: weights of a transposed convolution with G groups, (in, out / G, *kernel).

Every view only reorders entries, so going to the matrix and back is exact.
"""

from __future__ import annotations

import math
import re

from torch import Tensor

from geoquant.errors import ModelError

ROWS = "rows"
COLUMNS = "columns"
STACKED = "stacked"

_FEWEST_AXES = {ROWS: 1, COLUMNS: 2, STACKED: 3}


def transposed(groups: int) -> str:
    """Name the view of a transposed convolution with `groups` groups.

    >>> transposed(2)
    'transposed:2'
    """
    return f"transposed:{groups}"


def matrix_shape(view: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (channels, fan_in) of a weight of `shape` under `view`.

    Raises:
        ModelError: an unknown view, or a shape that it cannot hold.

    >>> matrix_shape("rows", (16, 3, 3, 3)), matrix_shape("columns", (8, 24)), matrix_shape("transposed:2", (4, 5, 3))
    ((16, 27), (24, 8), (10, 6))
    """
    groups = _groups(view, shape)
    if view == ROWS:
        channels = shape[0]
    elif view == STACKED:
        channels = shape[0] * shape[1]
    else:
        channels = groups * shape[1]
    return channels, math.prod(shape) // max(channels, 1)


def to_matrix(view: str, weight: Tensor) -> Tensor:
    """Return `weight` as a contiguous matrix (channels, fan_in); it may share memory with `weight`.

    >>> import torch
    >>> to_matrix("columns", torch.tensor([[1, 2, 3], [4, 5, 6]])).tolist()
    [[1, 4], [2, 5], [3, 6]]
    """
    shape = tuple(weight.shape)
    target = matrix_shape(view, shape)
    if view in (ROWS, STACKED):
        return weight.reshape(target).contiguous()
    groups = _groups(view, shape)
    grouped = weight.reshape(groups, shape[0] // groups, *shape[1:])
    return grouped.transpose(1, 2).reshape(target).contiguous()


def from_matrix(view: str, matrix: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the weight of `shape` whose matrix is `matrix`; the exact inverse of `to_matrix`.

    Raises:
        ModelError: `matrix` has not the shape that `matrix_shape` states.
    """
    expected = matrix_shape(view, shape)
    if tuple(matrix.shape) != expected:
        raise ModelError(f"a matrix of shape {tuple(matrix.shape)} came for a weight that is seen as {expected}")
    if view in (ROWS, STACKED):
        return matrix.reshape(shape).contiguous()
    groups = _groups(view, shape)
    grouped = matrix.reshape(groups, shape[1], shape[0] // groups, *shape[2:])
    return grouped.transpose(1, 2).reshape(shape).contiguous()


def _groups(view: str, shape: tuple[int, ...]) -> int:
    """Check that `view` exists and can hold `shape`; return its number of groups (1 where it has none)."""
    found = re.fullmatch(r"transposed:([1-9]\d*)", view)
    if found is None and view not in _FEWEST_AXES:
        raise ModelError(f"there is no view '{view}'; expected rows, columns, stacked or transposed:GROUPS")
    groups = int(found[1]) if found else 1
    fewest = 2 if found else _FEWEST_AXES[view]
    if len(shape) < fewest or shape[0] % groups:
        raise ModelError(f"the view '{view}' cannot hold a weight of shape {tuple(shape)}")
    return groups
