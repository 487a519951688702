"""Are images turned into model inputs by the formula that is stated, and are splits fair and repeatable?"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geoquant.data import IMAGENET, ImageSet, PixelStatistics, pixel_statistics
from geoquant.errors import DataError

from .conftest import make_pixels

STATISTICS = PixelStatistics((0.4, 0.5, 0.6), (0.1, 0.2, 0.3))


def make_set(count: int = 10, channels: int = 3, statistics: PixelStatistics | None = STATISTICS) -> ImageSet:
    pixels = make_pixels(count, channels=channels)
    return ImageSet(pixels, np.arange(count) % 3, "toy", "train", statistics)


@pytest.mark.parametrize(("normalize", "mean", "std"), [
    ("dataset", STATISTICS.mean, STATISTICS.std),
    ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ("none", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
])  # fmt: skip
def test_normalisation_matches_a_float64_reference(normalize, mean, std):
    data = make_set()
    inputs, targets = data.tensors(normalize)
    reference = (data.images.transpose(0, 3, 1, 2) / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    assert inputs.dtype == torch.float32
    np.testing.assert_allclose(inputs.numpy(), reference, atol=2e-6)
    assert targets.tolist() == data.labels.tolist()


def test_memory_order_does_not_change_values():
    last, first = make_set().tensors(channels_last=True)[0], make_set().tensors(channels_last=False)[0]
    assert torch.equal(last, first)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert first.is_contiguous()


def test_tensors_leave_the_pixels_alone():
    data = make_set()
    before = data.images.copy()
    data.tensors()[0].zero_()
    assert np.array_equal(data.images, before)


def test_grey_images_refuse_imagenet():
    grey = make_set(channels=1, statistics=None)
    with pytest.raises(DataError, match="toy is grey"):
        grey.tensors("imagenet")
    assert grey.tensors("none")[0].shape == (10, 1, 5, 6)


def test_unknown_statistics_and_names_are_told():
    with pytest.raises(DataError, match="pixel mean of toy is not known"):
        make_set(statistics=None).tensors()
    with pytest.raises(DataError, match="normalize='imagnet' is unknown; expected one of dataset, imagenet, none"):
        make_set().tensors("imagnet")  # type: ignore[arg-type]


def test_pixel_statistics_match_numpy_over_pieces():
    pixels = make_pixels(2500, side=2)
    measured = pixel_statistics(pixels)
    np.testing.assert_allclose(measured.mean, (pixels / 255).mean((0, 1, 2)), atol=5.1e-5)
    np.testing.assert_allclose(measured.std, (pixels / 255).std((0, 1, 2)), atol=5.1e-5)


def test_a_constant_channel_becomes_zeros():
    flat = np.full((4, 2, 2, 1), 255, np.uint8)
    data = ImageSet(flat, np.zeros(4, np.int64), "flat", "train", pixel_statistics(flat))
    assert torch.equal(data.tensors()[0], torch.zeros(4, 1, 2, 2))


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 30),
    size=st.integers(1, 12),
    limit=st.none() | st.integers(1, 40),
    seed=st.none() | st.integers(0, 3),
)
def test_batches_cover_the_chosen_images_once(count, size, limit, seed):
    images = np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1)
    data = ImageSet(images, np.arange(count), "toy", "train")
    batches = data.batches(size, limit, seed, "none")
    order = torch.cat([targets for _, targets in batches]).tolist()
    assert torch.equal(torch.cat([inputs for inputs, _ in batches]).flatten() * 255, torch.tensor(order).float())
    assert [len(targets) for _, targets in batches[:-1]] == [size] * (len(batches) - 1)
    assert len(order) == len(set(order)) == min(count, limit or count)
    if seed is None:
        assert order == list(range(len(order)))


def test_the_seed_decides_the_draw_and_the_limit_only_cuts_it():
    data = make_set(50)
    data = ImageSet(data.images, np.arange(50), "toy", "train", STATISTICS)

    def order(limit: int, seed: int) -> list[int]:
        return [int(label) for _, targets in data.batches(7, limit, seed) for label in targets]

    assert order(20, 1) == order(20, 1)
    assert order(20, 1) != order(20, 2)
    assert order(50, 1)[:20] == order(20, 1)
    assert order(50, 1) != sorted(order(50, 1))


def test_stream_makes_what_batches_holds():
    data = make_set(10)
    stream = data.stream(4, seed=3)
    for (made, made_targets), (held, held_targets) in zip(stream, data.batches(4, seed=3), strict=True):
        assert torch.equal(made, held)
        assert torch.equal(made_targets, held_targets)
    assert (len(stream), stream.samples) == (3, 10)


@pytest.mark.parametrize(("size", "limit"), [(0, None), (-1, None), (4, 0)])
def test_no_batch_is_refused(size, limit):
    with pytest.raises(DataError, match="leaves no batch"):
        make_set().batches(size, limit)


@settings(max_examples=60, deadline=None)
@given(labels=st.lists(st.integers(0, 4), min_size=2, max_size=60), data=st.data(), seed=st.integers(0, 5))
def test_split_off_is_exact_disjoint_stratified_and_repeatable(labels, data, seed):
    count = data.draw(st.integers(1, len(labels) - 1))
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
    whole = ImageSet(images, np.array(labels), "toy", "train")
    rest, held = whole.split_off(count, seed)
    assert len(held) == count
    rows = [part.images.ravel().tolist() for part in (rest, held)]
    assert sorted(rows[0] + rows[1]) == list(range(len(labels)))
    assert rows == [sorted(row) for row in rows]
    for label in set(labels):
        assert abs(int((held.labels == label).sum()) - count * labels.count(label) / len(labels)) < 1
    assert np.array_equal(whole.split_off(count, seed)[1].images, held.images)


def test_split_off_takes_a_share_and_another_seed_takes_others():
    data = make_set(30)
    rest, held = data.split_off(0.2)
    assert (len(rest), len(held), rest.statistics) == (24, 6, STATISTICS)
    assert not np.array_equal(held.images, data.split_off(0.2, seed=1)[1].images)


@pytest.mark.parametrize("amount", [0, 10, 11, -1, 0.0, 1.0, 0.01])
def test_split_off_leaves_no_part_empty(amount):
    with pytest.raises(DataError, match="both parts need at least one"):
        make_set(10).split_off(amount)


@pytest.mark.parametrize(
    ("images", "labels", "sentence"),
    [
        (np.zeros((2, 3, 3, 1), np.float32), np.zeros(2, np.int64), "images are float32"),
        (np.zeros((2, 3, 3, 4), np.uint8), np.zeros(2, np.int64), "expected uint8"),
        (np.zeros((2, 3, 3, 1), np.uint8), np.zeros(3, np.int64), "labels are int64"),
        (np.zeros((2, 3, 3, 1), np.uint8), np.zeros(2), "labels are float64"),
        (np.zeros((0, 3, 3, 1), np.uint8), np.zeros(0, np.int64), "is empty"),
    ],
)
def test_what_is_no_image_set_is_told(images, labels, sentence):
    with pytest.raises(DataError, match=sentence):
        ImageSet(images, labels, "x", "train")


def test_statistics_of_another_number_of_channels_are_refused():
    with pytest.raises(DataError, match="toy has 1 channels, its statistics 3"):
        make_set(channels=1, statistics=IMAGENET)
