"""A labelled set of small images: what is in it, and how it becomes the numbers that a model reads.

Pixels stay uint8 (possibly mapped from the cache on disk) until a batch is asked for. Crops and mirror images are
in `geoquant.data.augment`; resizing is out of scope: bring a callable that gives batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geoquant.data.batches import Batches
from geoquant.errors import DataError

Normalize = Literal["dataset", "imagenet", "none"]
Pair = tuple[Tensor, Tensor]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class PixelStatistics:
    """Mean and standard deviation per channel of pixels scaled to 0..1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


IMAGENET = PixelStatistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def pixel_statistics(images: NDArray[np.uint8]) -> PixelStatistics:
    """Measure mean and standard deviation per channel of (N, H, W, C), to four decimals like published constants.

    Counts each of the 256 values, so the sums are exact.

    >>> pixel_statistics(np.array([0, 255], dtype=np.uint8).reshape(2, 1, 1, 1))
    PixelStatistics(mean=(0.5,), std=(0.5,))
    """
    channels = images.shape[-1]
    counts = np.zeros((channels, 256), dtype=np.int64)
    for start in range(0, len(images), 1000):  # bincount widens to 8 bytes a pixel: keep the pieces small
        part = images[start : start + 1000].reshape(-1, channels)
        counts += np.stack([np.bincount(part[:, channel], minlength=256) for channel in range(channels)])
    share, values = counts / counts.sum(1, keepdims=True), np.arange(256) / 255
    mean = share @ values
    std = np.sqrt((share * (values - mean[:, None]) ** 2).sum(1))
    std[std == 0] = 1  # a constant channel becomes zeros, not NaN
    return PixelStatistics(*(tuple(float(round(value, 4)) for value in figures) for figures in (mean, std)))


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of one size with one label each.

    Attributes:
        images: uint8, (N, H, W, C) with C = 1 (grey) or 3 (RGB).
        labels: int64, (N,), each at least 0.
        name: such as ``cifar10``.
        split: such as ``train``.
        statistics: of the pixels of the set's *train* split; None when nobody has measured them.

    >>> spots = ImageSet(np.full((4, 2, 2, 1), 51, np.uint8), np.arange(4), "spots", "train")
    >>> inputs, targets = spots.tensors("none")
    >>> inputs.shape, round(float(inputs.mean()), 3), targets.tolist()
    (torch.Size([4, 1, 2, 2]), 0.2, [0, 1, 2, 3])
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    name: str
    split: str
    statistics: PixelStatistics | None = None

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
            raise DataError(f"images are {images.dtype} {images.shape}; expected uint8 (N, H, W, 1 or 3)")
        if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
            raise DataError(f"labels are {labels.dtype} {labels.shape}; expected int64 ({len(images)},)")
        if not len(images):
            raise DataError(f"the set {self.name} {self.split} is empty; expected at least one image")
        if self.statistics is not None and len(self.statistics.mean) != images.shape[-1]:
            raise DataError(f"{self.name} has {images.shape[-1]} channels, its statistics {len(self.statistics.mean)}")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def classes(self) -> int:
        """The number of classes, taking labels as 0 .. classes − 1."""
        return int(self.labels.max()) + 1

    def tensors(self, normalize: Normalize = "dataset", channels_last: bool = True) -> Pair:
        """Return all images as float32 (N, C, H, W) and all labels as int64 (N,).

        Args:
            normalize: ``dataset`` or ``imagenet`` give (pixels / 255 − mean) / std, ``none`` gives pixels / 255.
            channels_last: the memory order of the images; the values do not depend on it.

        Raises:
            DataError: grey images with ImageNet's constants, or a set whose constants nobody has measured.
        """
        images, labels = self.pair(np.arange(len(self)), self.constants(normalize))
        return (images if channels_last else images.contiguous()), labels

    def batches(
        self, size: int, limit: int | None = None, seed: int | None = None, normalize: Normalize = "dataset"
    ) -> tuple[Pair, ...]:
        """Return (images, labels) pairs of `size` images, the last one possibly shorter; see `stream`."""
        return tuple(self.stream(size, limit, seed, normalize))

    def stream(
        self, size: int, limit: int | None = None, seed: int | None = None, normalize: Normalize = "dataset"
    ) -> Batches[Pair]:
        """Return the same pairs as `batches`, each made when it is asked for, so that memory stays small.

        Args:
            size: images per batch.
            limit: at most so many images; all when None.
            seed: draws the images and their order without replacement; file order when None.
            normalize: see `tensors`.
        """
        if size < 1 or (limit is not None and limit < 1):
            raise DataError(f"batch size {size} with limit {limit} leaves no batch; both must be at least 1")
        constants = self.constants(normalize)
        order = np.arange(len(self)) if seed is None else np.random.default_rng(seed).permutation(len(self))
        order = order[:limit]
        starts = range(0, len(order), size)
        note = f"{self.name} {self.split}, {len(order)} of {len(self)} images"
        note += "" if seed is None else f", seed {seed}"
        return Batches(len(starts), lambda i: self.pair(order[starts[i] :][:size], constants), len(order), note)

    def constants(self, normalize: Normalize) -> PixelStatistics:
        """Return the mean and deviation that `normalize` stands for; errors as in `tensors`."""
        channels = self.images.shape[-1]
        if normalize == "none":
            return PixelStatistics((0.0,) * channels, (1.0,) * channels)
        if normalize == "imagenet":
            if channels == 1:
                raise DataError(
                    f"{self.name} is grey and ImageNet's constants are for RGB; use normalize='dataset' or 'none'"
                )
            return IMAGENET
        if normalize != "dataset":
            raise DataError(f"normalize={normalize!r} is unknown; expected one of {', '.join(get_args(Normalize))}")
        if self.statistics is None:
            raise DataError(
                f"the pixel mean of {self.name} is not known; give statistics=pixel_statistics(train_set.images), "
                "or use normalize='imagenet' or 'none'"
            )
        return self.statistics

    def pair(
        self, rows: NDArray[np.int64], constants: PixelStatistics, change: Callable[[Pixels], Pixels] | None = None
    ) -> Pair:
        """Return normalized images (n, C, H, W) and labels of some rows, their pixels (n, H, W, C) changed first."""
        chosen = self.images[rows] if change is None else change(self.images[rows])
        pixels = torch.from_numpy(chosen).permute(0, 3, 1, 2)  # a view: channels last in memory
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (constants.mean, constants.std))
        return pixels.float().div_(255).sub_(mean).div_(std), torch.from_numpy(self.labels[rows])

    def split_off(self, amount: float, seed: int = 0) -> tuple[ImageSet, ImageSet]:
        """Return (the rest, a held-out part), both in file order and with the classes in proportion.

        Args:
            amount: how many images to hold out: a share in (0, 1) when a float, a count when an int.
            seed: which images; the same seed gives the same split.

        >>> many = ImageSet(np.zeros((10, 1, 1, 1), np.uint8), np.array([0] * 6 + [1] * 4), "many", "train")
        >>> rest, held_out = many.split_off(0.5)
        >>> held_out.labels.tolist(), rest.labels.tolist()
        ([0, 0, 0, 1, 1], [0, 0, 0, 1, 1])
        """
        count = amount if isinstance(amount, (int, np.integer)) else round(amount * len(self))
        if not 0 < count < len(self):
            raise DataError(f"cannot hold out {amount} of {len(self)} images; both parts need at least one")
        chosen = np.zeros(len(self), dtype=bool)
        chosen[_stratified(self.labels, count, seed)] = True
        return self._take(~chosen, "rest"), self._take(chosen, "held out")

    def _take(self, rows: NDArray[np.bool_], part: str) -> ImageSet:
        return replace(self, images=self.images[rows], labels=self.labels[rows], split=f"{self.split} ({part})")


def _stratified(labels: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Draw `count` rows, each class in proportion; what is left over goes to the largest remainders."""
    rng = np.random.default_rng(seed)
    _, classes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    quota, remainder = np.divmod(sizes * count, len(labels))
    quota[np.argsort(-remainder, kind="stable")[: count - quota.sum()]] += 1
    rows = [rng.permutation(np.flatnonzero(classes == k))[:share] for k, share in enumerate(quota)]
    return np.concatenate(rows)
