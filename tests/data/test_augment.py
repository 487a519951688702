"""Crops and mirror images: the pixels are the image's own, and a batch is a function of seed, epoch and place."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from geoquant.data import AugmentedImages, ImageSet
from geoquant.errors import DataError


def numbered(count: int = 12, width: int = 5) -> ImageSet:
    """Return images whose pixels are all different and none is 0."""
    pixels = 1 + np.arange(count * width * width) % 250
    shape = (count, width, width, 1)
    return ImageSet(pixels.astype(np.uint8).reshape(shape), np.arange(count), "numbered", "train")


def windows(image: np.ndarray, pad: int) -> set[bytes]:
    rows = [abs(k) if k < len(image) else 2 * (len(image) - 1) - k for k in range(-pad, len(image) + pad)]
    padded = image[rows][:, rows]  # the border reflects the image about its outermost pixels
    size = len(image)
    cuts = [padded[y : y + size, x : x + size] for y in range(2 * pad + 1) for x in range(2 * pad + 1)]
    return {np.ascontiguousarray(each).tobytes() for cut in cuts for each in (cut, cut[:, ::-1])}


def test_every_image_is_a_window_of_its_original_and_all_are_shown_once() -> None:
    images = numbered()
    source = AugmentedImages(images, 4, seed=3, normalize="none", padding=2)
    seen = []
    for index in range(len(source)):
        inputs, labels = source.batch(1, index)
        for pixels, label in zip((255 * inputs).round().byte().numpy(), labels.tolist(), strict=True):
            assert np.ascontiguousarray(pixels[0]).tobytes() in windows(images.images[label, :, :, 0], 2)
            seen.append(label)
    assert sorted(seen) == list(range(12))


def test_batches_depend_on_seed_epoch_and_place_and_on_nothing_else() -> None:
    first, again = (AugmentedImages(numbered(), 4, seed=3, normalize="none") for _ in range(2))
    first.batch(0, 0), first.batch(7, 2)
    assert torch.equal(first.batch(1, 2)[0], again.batch(1, 2)[0])
    other = AugmentedImages(numbered(), 4, seed=4, normalize="none")
    assert not torch.equal(first.batch(1, 2)[0], other.batch(1, 2)[0])
    assert not torch.equal(first.batch(1, 2)[0], first.batch(2, 2)[0])


def test_half_of_the_images_are_mirrored_and_none_when_not_asked() -> None:
    ramp = np.tile(np.arange(1, 9, dtype=np.uint8), (400, 8, 1))[..., None]
    images = ImageSet(ramp, np.zeros(400, np.int64), "ramps", "train")
    for mirror, low, high in ((True, 150, 250), (False, 0, 0)):
        inputs, _ = AugmentedImages(images, 400, normalize="none", padding=0, mirror=mirror).batch(0, 0)
        falling = int((inputs[:, 0, 0, 0] > inputs[:, 0, 0, -1]).sum())
        assert low <= falling <= high


def test_the_memory_format_is_that_of_other_batches() -> None:
    rgb = ImageSet(np.zeros((4, 8, 8, 3), np.uint8), np.zeros(4, np.int64), "rgb", "train")
    inputs, _ = AugmentedImages(rgb, 2, normalize="none").batch(0, 0)
    assert inputs.is_contiguous(memory_format=torch.channels_last)


def test_a_batch_larger_than_the_set_is_refused() -> None:
    with pytest.raises(DataError, match="13 images"):
        AugmentedImages(numbered(), 13)
