"""From the words of a command line to models, batches and settings; one place for all commands."""

from __future__ import annotations

import enum
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from torch import nn

from geoquant.data import load_data
from geoquant.errors import DataError
from geoquant.models import fold_batch_norm_, load_model, load_weights_


class Normalize(enum.StrEnum):
    """Which constants image pixels are normalized with."""

    dataset = "dataset"
    imagenet = "imagenet"
    none = "none"


Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="`package.module:callable` or `file.py:callable` that returns the model.")
]
Weights = Annotated[Path | None, typer.Option(help="Weights for MODEL, as safetensors.")]
Data = Annotated[
    str,
    typer.Option(
        help="Hub name or its short form (cifar10, mnist, fashion_mnist), a folder of parquet files, `digits`, or a "
        "callable that gives batches. $GEOQUANT_DATA_DIR points at a local mirror."
    ),
]
NormalizeOption = Annotated[
    Normalize | None, typer.Option(help="How image pixels are normalized; required with --weights.")
]
Images = Annotated[int, typer.Option(min=1, help="How many calibration samples to look at (from the train split).")]
BatchSize = Annotated[int, typer.Option(min=1, help="Samples per batch.")]
Seed = Annotated[int, typer.Option(help="Seed of every random draw.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Fold = Annotated[bool, typer.Option("--fold-batch-norm", help="Fold batch norms into the layers before them first.")]


def read_model(spec: str, weights: Path | None, fold: bool = False) -> nn.Module:
    """Build the model, give it its weights, and set it up for fast evaluation."""
    model = load_model(spec)
    if weights is not None:
        load_weights_(model, weights)
    model = fast(model.eval())
    if fold:
        fold_batch_norm_(model)
    return model


def fast(model: nn.Module) -> nn.Module:
    """Lay convolutions out channels last: several times faster on a CPU, same numbers up to rounding."""
    if not any(isinstance(module, nn.Conv2d) for module in model.modules()):
        return model
    laid_out: nn.Module = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return laid_out


def read_batches(
    spec: str,
    split: str,
    normalize: Normalize | None,
    weights: Path | None,
    batch_size: int,
    limit: int | None = None,
    seed: int = 0,
) -> Sequence[Any]:
    """Load batches of one split; insists on a normalization where weights were brought along."""
    if normalize is None and weights is not None and ":" not in spec:
        raise DataError(
            "--weights were trained on images normalized in some way: say which with "
            "--normalize dataset, imagenet or none"
        )
    chosen: Literal["dataset", "imagenet", "none"] = "dataset" if normalize is None else normalize.value
    return load_data(spec, split, normalize=chosen, batch_size=batch_size, limit=limit, seed=seed)


def pairs(items: Sequence[str], what: str) -> dict[str, str]:
    """Parse ``NAME=VALUE`` options; the last ``=`` separates, since patterns may hold one."""
    parsed = {}
    for item in items:
        name, separator, value = item.rpartition("=")
        if not separator or not name or not value:
            raise typer.BadParameter(f"'{item}' is no {what}; write NAME=VALUE, such as conv1=8")
        parsed[name] = value
    return parsed


def show(text: str, document: dict[str, Any], as_json: bool) -> None:
    """Print the result: the document as JSON, or the text."""
    print(json.dumps(document, indent=1) if as_json else text)


def say(text: str) -> None:
    """Tell the person at the terminal something that is not the result."""
    print(text, file=sys.stderr)
