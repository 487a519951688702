"""What does a net see of the same images in each epoch: crops and mirror images, drawn anew.

Each image is padded, cut out again at a random place, and mirrored half of the time (He et al., arXiv:1512.03385,
section 4.2); one gather per batch. Unlike there the border is the image's own reflection and not black: in a short
training batch norms would follow the black borders and be off on images without. A batch is a function of seed, epoch
and place, so a training run can be taken up anywhere.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from geoquant.data.images import ImageSet, Normalize, Pair
from geoquant.errors import DataError


class AugmentedImages:
    """Shuffled batches of crops and mirror images; an incomplete last batch is left out.

    Args:
        images: what to show.
        size: images per batch.
        seed: of order, crops and mirroring.
        normalize: see `ImageSet.tensors`.
        padding: pixels on each side; an eighth of the width when None.
        mirror: whether images are mirrored; digits and letters had better not be.

    >>> spots = ImageSet(np.arange(64, dtype=np.uint8).reshape(4, 4, 4, 1), np.arange(4), "spots", "train")
    >>> source = AugmentedImages(spots, 2, normalize="none", padding=0, mirror=False)
    >>> len(source), source.batch(0, 1)[0].shape
    (2, torch.Size([2, 1, 4, 4]))
    """

    def __init__(
        self,
        images: ImageSet,
        size: int = 128,
        seed: int = 0,
        normalize: Normalize = "dataset",
        padding: int | None = None,
        mirror: bool = True,
    ) -> None:
        if not 1 <= size <= len(images):
            raise DataError(f"a batch of {size} images does not fit a set of {len(images)}; choose another size")
        self._images, self._size, self._seed, self._mirror = images, size, seed, mirror
        self._constants = images.constants(normalize)
        self._padding = images.images.shape[2] // 8 if padding is None else padding
        self._order: tuple[int, NDArray[np.int64]] = -1, np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self._images) // self._size

    def batch(self, epoch: int, index: int) -> Pair:
        """Return the (images, labels) at a place of an epoch."""
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self._seed, epoch]).permutation(len(self._images))
        rows = self._order[1][index * self._size :][: self._size]
        random = np.random.default_rng([self._seed, epoch, index])
        return self._images.pair(rows, self._constants, lambda pixels: self._changed(pixels, random))

    def _changed(self, pixels: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
        """Cut a window out of each padded image (n, h, w, c), and mirror some."""
        count, height, width, _ = pixels.shape
        pad = self._padding
        padded = np.pad(pixels, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")
        top, left = random.integers(0, 2 * pad + 1, (2, count, 1, 1))
        columns = np.broadcast_to(np.arange(width), (count, 1, width))
        if self._mirror:
            columns = np.where(random.integers(0, 2, (count, 1, 1)) == 1, columns[..., ::-1], columns)
        cut: NDArray[np.uint8] = padded[
            np.arange(count)[:, None, None], top + np.arange(height)[:, None], left + columns
        ]
        return cut
