"""What does each choice cost in a model that does not fit into memory?

The cheapest predictor, the squared error of the weights, needs one weight at a time and no data. Channels are rounded
independently, so some of them, evenly spaced, tell the error of all with a standard error, in time that does not grow
with the width. It ranks; a plan that must be judged in nats needs `geoquant.profile` on a machine that holds the model.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from geoquant.grids import Grid
from geoquant.progress import task as working
from geoquant.sensitivity import DEFAULT_GRIDS, DamageTable, Profile
from geoquant.streaming.checkpoint import Checkpoint
from geoquant.streaming.skeleton import make_skeleton

CHANNELS = 512


def profile_folder(
    folder: Path | str,
    *,
    grids: Sequence[str | Grid] = DEFAULT_GRIDS,
    channels: int | None = CHANNELS,
    task: str | None = None,
    seed: int = 0,
) -> Profile:
    """Return the profile of a Hugging Face folder by weight error, one weight in memory at a time.

    Args:
        folder: with ``config.json`` and safetensors.
        grids: the choices.
        channels: of each weight, at most, that are rounded; all when None.
        task: what the model is for; the folder's own word by default.
        seed: kept in the profile; nothing here is random.

    Raises:
        FileFormatError, WeightsError: the files are not whole or lack a weight.
        ModelError: transformers does not know the model, or it has no list of blocks.
        GridError: a grid is unknown or cannot hold a weight.
    """
    start = time.perf_counter()
    chosen = tuple(dict.fromkeys(grid if isinstance(grid, Grid) else Grid.parse(grid) for grid in grids))
    with Checkpoint(folder) as weights:
        skeleton = make_skeleton(folder, weights, task)
        errors, spread = np.empty((2, len(skeleton.sites), len(chosen)))
        with working("measuring weight errors", len(skeleton.sites)) as advance:
            for row, site in enumerate(skeleton.sites):
                matrix = _some_rows(site.matrix(weights[skeleton.names[site.parameter]]), channels)
                for column, grid in enumerate(chosen):
                    moved = grid.quantize(matrix).dequantize().sub_(matrix)
                    each = moved.double().square().sum(1)
                    errors[row, column], spread[row, column] = _of_all(each, site.matrix_shape[0])
                advance()
        names = tuple(site.name for site in skeleton.sites)
        labels = tuple(str(grid) for grid in chosen)
        damage = tuple(tuple(row) for row in errors.tolist())
        stderr = tuple(tuple(row) for row in spread.tolist())
        table = DamageTable("weight_error", None, names, labels, damage, stderr, 0.0, 0)
        inventory = skeleton.inventory(weights)
    return Profile(inventory, labels, (table,), "", seed, (time.perf_counter() - start,))


def _some_rows(matrix: Tensor, count: int | None) -> Tensor:
    """Return at most `count` rows, evenly spaced."""
    if count is None or len(matrix) <= count:
        return matrix
    return matrix[torch.linspace(0, len(matrix) - 1, count).round().long()]


def _of_all(each: Tensor, count: int) -> tuple[float, float]:
    """Return the sum over `count` rows and its standard error, from some of them.

    >>> _of_all(torch.tensor([1.0, 3.0]), 2)
    (4.0, 0.0)
    >>> _of_all(torch.tensor([1.0, 3.0]), 8)[0]
    16.0
    """
    total = float(each.mean()) * count
    if len(each) == count or len(each) < 2:
        return total, 0.0
    return total, count * float(each.std()) * ((1 - len(each) / count) / len(each)) ** 0.5
