"""Data that is always at hand: scikit-learn's 1,797 handwritten digits, grey, 8 × 8.

The split is ours (scikit-learn gives none): fixed, every class in proportion. Digits of one writer may stand on
both sides of it, so test accuracy here says less about new writers than UCI's own split would.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
from sklearn.datasets import load_digits

from geoquant.data.images import ImageSet, PixelStatistics
from geoquant.errors import DataError

DIGITS_STATISTICS = PixelStatistics((0.3056,), (0.3760,))
_TEST_IMAGES = 360
_SEED = 0


def digits(split: str) -> ImageSet:
    """Return the embedded digits: 1,437 for training, 360 for testing, pixels 0..16 scaled to 0..255.

    Raises:
        DataError: `split` is neither ``train`` nor ``test``.

    >>> len(digits("train")), len(digits("test")), digits("test").images.shape[1:]
    (1437, 360, (8, 8, 1))
    """
    if split not in ("train", "test"):
        raise DataError(f"digits have no split {split!r}; expected 'train' or 'test'")
    return _both()[split == "test"]


@lru_cache(maxsize=1)
def _both() -> tuple[ImageSet, ImageSet]:
    source = load_digits()
    images = np.rint(source.images * (255 / 16)).astype(np.uint8)[..., None]
    whole = ImageSet(images, source.target.astype(np.int64), "digits", "train", DIGITS_STATISTICS)
    train, test = whole.split_off(_TEST_IMAGES, seed=_SEED)
    for array in (train.images, train.labels, test.images, test.labels):
        array.flags.writeable = False  # every caller gets these same arrays
    return replace(train, split="train"), replace(test, split="test")
