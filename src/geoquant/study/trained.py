"""Which float net does a cell start from, and what did training it take?

A net is trained once for its recipe and kept as safetensors in the cache folder (`geoquant.data.cache`), under a hash
of the recipe; every other cell that asks for it reads it there. Training is deterministic by seed, so a lost cache
costs time and nothing else. Images for calibration are held out of training, and test images take no part in either.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from geoquant.data import ImageSet, load_images
from geoquant.data.cache import cache_folder
from geoquant.models.zoo import ZOO
from geoquant.storage import atomic_path, digest
from geoquant.training import fit_classifier_

HELD_OUT = 0.1
"""The share of the training images that calibration is drawn from, and training is not."""
FORMAT = 1
"""To be raised when the same recipe trains another net than before: kept nets of older formats are not read."""


@dataclass(frozen=True)
class Recipe:
    """How a float net came to be.

    Attributes:
        net: its name in the zoo.
        data: a named image set, or "digits".
        images: how many training images it saw; all that are not held out when None.
        epochs: passes over them.
        seed: of its first weights and of the order of images.
    """

    net: str
    data: str
    images: int | None
    epochs: int
    seed: int

    @property
    def key(self) -> str:
        """The name of its file: another for another recipe.

        >>> Recipe("digits_cnn", "digits", None, 2, 0).key == Recipe("digits_cnn", "digits", None, 3, 0).key
        False
        """
        return f"{self.net}-{self.data}-{digest({**asdict(self), 'format': FORMAT})[:16]}".replace("/", "_")


@dataclass(frozen=True, eq=False)
class Trained:
    """A float net in eval mode, with the images that it did not train on.

    Attributes:
        model: channels last where it has convolutions.
        seconds: processor time that training took, on whatever machine did it.
        held_out: training images for calibration.
        test: test images.
    """

    model: nn.Module
    seconds: float
    held_out: ImageSet
    test: ImageSet


def trained(recipe: Recipe, folder: Path | None = None) -> Trained:
    """Return the net of a recipe, from the cache where it is there.

    Args:
        recipe: which net.
        folder: where nets are kept; below the cache folder when None.

    Raises:
        UnknownNameError: the zoo has no such net.
        DataError: its data are not at hand.
    """
    rest, held_out = load_images(recipe.data, "train").split_off(HELD_OUT, seed=0)
    torch.manual_seed(recipe.seed)
    model = ZOO[recipe.net]().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    test = load_images(recipe.data, "test")
    seconds = kept_(model, recipe.key, lambda: _train_(model, rest, recipe), folder)
    return Trained(model.eval(), seconds, held_out, test)


def kept_(model: nn.Module, key: str, train: Callable[[], object], folder: Path | None = None) -> float:
    """Load weights that were trained before under the same key, or train and keep them.

    Args:
        model: gets the weights.
        key: says everything that they follow from.
        train: trains `model` in place.
        folder: where weights are kept; below the cache folder when None.

    Returns:
        the processor time in seconds that training took when it was done.
    """
    folder = folder or _usual_folder()
    if folder is None:
        return _timed(train)
    path = folder / f"{key}.safetensors"
    with _alone(path):
        seconds = _read_(model, path)
        if seconds is None:
            seconds = _timed(train)
            _write(model, seconds, path)
    return seconds


def _timed(train: Callable[[], object]) -> float:
    start = time.process_time()
    train()
    return time.process_time() - start


def _usual_folder() -> Path | None:
    cache = cache_folder()
    return None if cache is None else cache / "nets"


def _train_(model: nn.Module, images: ImageSet, recipe: Recipe) -> None:
    if recipe.images is not None and recipe.images < len(images):
        images = images.split_off(recipe.images, seed=0)[1]
    mirror = _mirrored if images.images.shape[-1] == 3 else None
    fit_classifier_(model, *images.tensors(), epochs=recipe.epochs, seed=recipe.seed, augment=mirror)


def _mirrored(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the photographs (N, C, H, W); digits and letters are not shown mirrored."""
    turned = torch.rand(len(batch), 1, 1, 1, generator=generator) < 0.5
    return torch.where(turned, batch.flip(-1), batch)


def _read_(model: nn.Module, path: Path) -> float | None:
    """Load what is kept; return the seconds that training took, None where nothing whole is kept."""
    try:
        with safe_open(path, "pt") as file:
            note: dict[str, Any] = json.loads((file.metadata() or {})["note"])
        load_model(model, path)
        return float(note["seconds"])
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError):
        return None  # absent, cut short, or of an older definition of the net


def _write(model: nn.Module, seconds: float, path: Path) -> None:
    with atomic_path(path) as temporary:
        save_model(model, str(temporary), {"note": json.dumps({"seconds": seconds})})  # tied weights once


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one process of this machine at a time train what several want."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
