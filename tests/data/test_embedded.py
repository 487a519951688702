"""Are the embedded digits scikit-learn's, split once and for all?"""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from sklearn.datasets import load_digits

from geoquant.data import DIGITS_STATISTICS, digits, load_images, pixel_statistics
from geoquant.errors import DataError


def test_both_parts_together_are_the_source_to_a_256th():
    source = load_digits()
    pairs = zip(source.images, source.target, strict=True)
    wanted = sorted((image.astype(int).tobytes(), int(label)) for image, label in pairs)
    found = []
    for split in ("train", "test"):
        part = digits(split)
        levels = np.rint(part.images[..., 0] / (255 / 16)).astype(int)
        found += [(image.tobytes(), int(label)) for image, label in zip(levels, part.labels, strict=True)]
    assert sorted(found) == wanted


def test_every_class_is_in_the_test_part_in_proportion():
    counts = np.bincount(digits("test").labels)
    assert counts.sum() == 360
    assert set(counts) <= {35, 36, 37}


def test_the_split_never_changes():
    """Published figures depend on it: a new numpy that draws others must be noticed."""
    names = {split: hashlib.sha256(digits(split).images.tobytes()).hexdigest()[:16] for split in ("train", "test")}
    assert names == {"train": "828d76af64c0638d", "test": "c1f4ab5c0fdba70c"}


def test_constants_are_those_of_the_train_part():
    assert pixel_statistics(digits("train").images) == DIGITS_STATISTICS
    inputs, _ = digits("train").tensors()
    assert abs(float(inputs.mean())) < 1e-3
    assert abs(float(inputs.std()) - 1) < 1e-3


def test_load_images_knows_them_by_name_and_other_splits_are_refused():
    assert load_images("digits", "train") is digits("train")
    with pytest.raises(DataError, match="no split 'validation'"):
        digits("validation")
