"""What does each choice cost in a model that does not fit into memory?

The cheapest predictor, the squared error of the weights, needs one weight at a time and no data. It ranks; a plan that
must be judged in nats needs `geoquant.profile` on a machine that holds the model.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from geoquant.grids import Grid
from geoquant.progress import task as working
from geoquant.sensitivity import DEFAULT_GRIDS, DamageTable, Profile
from geoquant.streaming.checkpoint import Checkpoint
from geoquant.streaming.skeleton import make_skeleton


def profile_folder(
    folder: Path | str, *, grids: Sequence[str | Grid] = DEFAULT_GRIDS, task: str | None = None, seed: int = 0
) -> Profile:
    """Return the profile of a Hugging Face folder by weight error, one weight in memory at a time.

    Args:
        folder: with ``config.json`` and safetensors.
        grids: the choices.
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
        errors = np.empty((len(skeleton.sites), len(chosen)))
        with working("measuring weight errors", len(skeleton.sites)) as advance:
            for row, site in enumerate(skeleton.sites):
                matrix = site.matrix(weights[skeleton.names[site.parameter]])
                for column, grid in enumerate(chosen):
                    moved = grid.quantize(matrix).dequantize().sub_(matrix)
                    errors[row, column] = float(moved.double().square().sum())
                advance()
        names = tuple(site.name for site in skeleton.sites)
        labels = tuple(str(grid) for grid in chosen)
        damage = tuple(tuple(row) for row in errors.tolist())
        exact = tuple((0.0,) * len(chosen) for _ in names)
        table = DamageTable("weight_error", None, names, labels, damage, exact, 0.0, 0)
        inventory = skeleton.inventory(weights)
    return Profile(inventory, labels, (table,), "", seed, (time.perf_counter() - start,))
