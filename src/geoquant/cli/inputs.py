"""From the words of a command line to models, batches and settings; one place for all commands."""

from __future__ import annotations

import enum
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from torch import nn

from geoquant.data import load_data
from geoquant.errors import DataError, GeoquantError, ModelError
from geoquant.importing import is_spec
from geoquant.models import (
    class_names,
    context_length,
    fold_batch_norm_,
    inference,
    load_model,
    load_tokenizer,
    load_weights_,
    predict,
    source_folder,
)


class Normalize(enum.StrEnum):
    """Which constants image pixels are normalized with."""

    dataset = "dataset"
    imagenet = "imagenet"
    none = "none"


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="`package.module:callable` or `file.py:callable` that returns the model, or a Hugging Face folder.",
    ),
]
Weights = Annotated[Path | None, typer.Option(help="Weights for MODEL, as safetensors.")]
Data = Annotated[
    str,
    typer.Option(
        help="Hub name or its short form (cifar10, mnist, fashion_mnist), a folder of parquet files, `digits`, a text "
        "file or folder (for language models), or a callable that gives batches. $GEOQUANT_DATA_DIR points at a local "
        "mirror."
    ),
]
Task = Annotated[
    str | None,
    typer.Option(help="What a Hugging Face folder is for: causal-lm or classification; its own word by default."),
]
Window = Annotated[
    int | None,
    typer.Option(min=2, help="Tokens that a language model reads at once; its own limit, at most 512, by default."),
]
Stride = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Tokens from one evaluation window to the next; window − 1 by default. Every token is scored once "
        "whatever it is; smaller strides give more context and take longer.",
    ),
]
NormalizeOption = Annotated[
    Normalize | None, typer.Option(help="How image pixels are normalized; required with --weights.")
]
Images = Annotated[
    int | None,
    typer.Option(
        "--images",
        "--samples",
        min=1,
        help="How many calibration samples to look at (from the train split); 512 images or 64 windows of text by "
        "default.",
    ),
]
BatchSize = Annotated[
    int | None, typer.Option(min=1, help="Samples per batch; 128 images or 8 windows of text by default.")
]
Seed = Annotated[int, typer.Option(help="Seed of every random draw.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Fold = Annotated[bool, typer.Option("--fold-batch-norm", help="Fold batch norms into the layers before them first.")]


Constants = Literal["dataset", "imagenet", "none"]
DEFAULT_WINDOW = 512
CALIBRATION_IMAGES, CALIBRATION_WINDOWS = 512, 64


def read_model(spec: str, weights: Path | None, fold: bool = False, task: str | None = None) -> nn.Module:
    """Build the model, give it its weights, and set it up for fast evaluation."""
    model = load_model(spec, task=task)
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
    batch_size: int | None,
    limit: int | None = None,
    seed: int = 0,
    model: nn.Module | None = None,
    window: int | None = None,
    stride: int | None = None,
) -> Sequence[Any]:
    """Load batches of one split; insists on a normalization where weights were brought along.

    Texts are tokenized as the folder of `model` says, in windows that it can read.
    """
    folder = None if model is None else source_folder(model)
    if model is not None and folder is not None and not is_spec(spec):
        size = window or min(context_length(model) or DEFAULT_WINDOW, DEFAULT_WINDOW)
        options: dict[str, Any] = {"tokenizer": load_tokenizer(folder), "window": size, "stride": stride}
        options["classes"] = class_names(model)
        return load_data(spec, split, batch_size=batch_size, limit=limit, seed=seed, **options)
    chosen = pixel_constants(normalize, None if is_spec(spec) else weights)
    return load_data(spec, split, normalize=chosen, batch_size=batch_size, limit=limit, seed=seed)


def pixel_constants(normalize: Normalize | None, weights: Path | None) -> Constants:
    """Name the constants that pixels are normalized with; weights that were brought along need to say which."""
    if normalize is None and weights is not None:
        raise DataError(
            "--weights were trained on images normalized in some way: say which with "
            "--normalize dataset, imagenet or none"
        )
    return "dataset" if normalize is None else normalize.value


@dataclass(frozen=True)
class Source:
    """Where a command's samples come from; fields as the options of the same names."""

    data: str
    normalize: Normalize | None = None
    weights: Path | None = None
    batch_size: int | None = None
    seed: int = 0
    window: int | None = None

    def batches(
        self, split: str, model: nn.Module | None = None, limit: int | None = None, stride: int | None = None
    ) -> Sequence[Any]:
        """Load batches of one split, at most `limit` samples; see `read_batches`."""
        chosen = (self.data, split, self.normalize, self.weights, self.batch_size)
        return read_batches(*chosen, limit, self.seed, model, self.window, stride)

    def calibration(self, model: nn.Module, samples: int | None = None) -> Sequence[Any]:
        """Load calibration batches for `model`, by default fewer windows of text than images."""
        usual = CALIBRATION_IMAGES if source_folder(model) is None else CALIBRATION_WINDOWS
        return fitting(model, self.batches("train", model, samples or usual))


def fitting(model: nn.Module, batches: Sequence[Any]) -> Sequence[Any]:
    """Return the batches once the model has taken the first: a misfit is told in a sentence, before minutes of work."""
    try:
        with inference(model):
            for batch in islice(batches, 1):
                predict(model, batch)
    except GeoquantError:
        raise
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"{type(model).__name__} fails on the first batch ({reason}); give it data of the kind that it takes"
        ) from error
    return batches


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
