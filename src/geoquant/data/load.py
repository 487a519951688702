"""From what a user types to batches: names of data sets, folders, texts, and callables of the user's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from geoquant.data.batches import Batch, Batches, collect, samples
from geoquant.data.cache import cached
from geoquant.data.embedded import digits
from geoquant.data.examples import example_batches, load_examples
from geoquant.data.hub import locate
from geoquant.data.images import ImageSet, Normalize, pixel_statistics
from geoquant.data.parquet import read_images, read_labels
from geoquant.data.text import holds_text, is_text_table, load_text
from geoquant.data.tokens import Tokenizer, text_batches
from geoquant.errors import DataError, GeoquantError
from geoquant.importing import import_named, is_spec


def load_images(name_or_folder: str | Path, split: str) -> ImageSet:
    """Load a labelled image set, decoding it once and keeping the pixels in the cache.

    Args:
        name_or_folder: ``digits``, a known name (``cifar10`` or ``uoft-cs/cifar10``), another name on the
            Hub or in ``$GEOQUANT_DATA_DIR``, or a folder with ``<split>-*.parquet``.
        split: ``train`` or ``test``.

    Returns:
        The set. Its statistics are the published ones for known sets, measured for the train split of others, and
        None for other splits of others.

    Raises:
        DataError: it cannot be found, fetched or read.
        MissingExtraError: it is only on the Hub and huggingface_hub is not installed.

    >>> load_images("digits", "test").images.shape
    (360, 8, 8, 1)
    """
    if name_or_folder == "digits":
        return digits(split)
    place = locate(name_or_folder, split)
    title = f"{place.name} {split}"
    labels = read_labels(place.files)
    images = cached(f"{place.name}-{split}", place.files, lambda: read_images(place.files, title))
    statistics = place.known.statistics if place.known else pixel_statistics(images) if split == "train" else None
    return ImageSet(images, labels, place.name, split, statistics)


def load_data(
    spec: str | Path,
    split: str,
    *,
    normalize: Normalize = "dataset",
    batch_size: int | None = None,
    limit: int | None = None,
    seed: int | None = None,
    tokenizer: Tokenizer | None = None,
    window: int | None = None,
    stride: int | None = None,
    classes: Mapping[str, int] | None = None,
) -> Batches[Batch]:
    """Turn what a user named into batches.

    Args:
        spec: what `load_images` or `load_text` take, or ``package.module:callable`` or ``file.py:callable``. The
            callable returns an iterable of batches, is told ``split=`` if it has such a parameter, and decides
            itself about normalisation, batch size and order. Its batches are held in memory; those of images are not.
        split: ``train`` for calibration, ``test`` for evaluation.
        normalize: see `ImageSet.tensors`.
        batch_size: images (128 by default) or windows of text (8 by default) per batch.
        limit: at most so many samples.
        seed: draws images and order; None keeps the order of the files. Of text: only of the ``train`` split.
        tokenizer: needed for text.
        window: tokens that a language model reads at once, needed for text.
        stride: see `geoquant.data.evaluation_windows`.
        classes: number of each class by its name, for a model that classifies texts: each line, or row, is an example
            then (see `geoquant.data.load_examples`).

    Raises:
        DataError: there is no such data, or its batches are empty, not finite or of another form.
        MissingExtraError: see `load_images`.

    >>> load_data("digits", "train", batch_size=64, limit=100, seed=0)
    Batches(digits train, 100 of 1437 images, seed 0, in 2 batches)
    """
    text = str(spec)
    if is_spec(text):
        return _from_callable(import_named(text, DataError), text, split, limit)
    if holds_text(spec) or (tokenizer is not None and spec != "digits" and is_text_table(locate(spec, split).files)):
        if tokenizer is None or window is None:
            raise DataError(
                f"{text}: text files need a tokenizer; pass a callable that gives batches, "
                "or name a Hugging Face folder as the model"
            )
        options: dict[str, Any] = {"window": window, "limit": limit, "seed": seed, "batch_size": batch_size or 8}
        if classes is not None:
            options["seed"] = seed if split == "train" else None
            return example_batches(load_examples(spec, split, classes), tokenizer, **options)
        return text_batches(load_text(spec, split), split, tokenizer, stride=stride, **options)
    if Path(spec).is_file():
        raise DataError(f"{text} is a file; expected the folder that holds {split}-*.parquet")
    images = load_images(spec, split)
    if normalize == "dataset" and images.statistics is None:
        images = replace(images, statistics=load_images(spec, "train").statistics)
    return images.stream(batch_size or 128, limit, seed, normalize)


def _from_callable(make: Callable[..., Any], spec: str, split: str, limit: int | None) -> Batches[Batch]:
    if not callable(make):
        raise DataError(f"{spec} is {type(make).__name__}; expected a callable that returns batches")
    try:
        given: Iterable[Batch] = make(split=split) if _takes(make, "split") else make()
        batches = collect(given, limit)
    except GeoquantError:
        raise
    except Exception as error:
        raise DataError(f"{spec} raised {type(error).__name__}: {error}; expected an iterable of batches") from error
    total = sum(samples(batch) for batch in batches)
    return Batches(len(batches), batches.__getitem__, total, f"{spec} {split}, {total} samples")


def _takes(function: Callable[..., Any], name: str) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return any(
        parameter.kind is parameter.VAR_KEYWORD
        or (parameter.name == name and parameter.kind is not parameter.POSITIONAL_ONLY)
        for parameter in parameters
    )
