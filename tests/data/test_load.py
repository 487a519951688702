"""Does what a user types become the right batches: names, folders, functions of their own?"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from geoquant.data import load_data, load_images, pixel_statistics
from geoquant.errors import DataError

from .conftest import encode, make_pixels, write_parquet

FUNCTIONS = """
import torch
from helper import SIZE

def plain():
    return [torch.zeros(SIZE, 2), torch.ones(SIZE, 2)]

def lazy(split):
    yield {"x": torch.full((SIZE,), float(split == "test"))}

def anything(**options):
    return [torch.full((1,), float(options["split"] == "test"))]

class Holder:
    @staticmethod
    def batches():
        return [torch.zeros(1)]

def poisoned():
    return [torch.zeros(1), torch.tensor([float("nan")])]

def broken():
    raise RuntimeError("the user's own problem")

number = 3
"""


def write_set(folder: Path, channels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    train, test = make_pixels(8, channels=channels, seed=1), make_pixels(4, channels=channels, seed=2)
    for split, pixels in (("train", train), ("test", test)):
        write_parquet(folder / f"{split}-00000-of-00001.parquet", [encode(each) for each in pixels], range(len(pixels)))
    return train, test


@pytest.fixture
def functions(tmp_path: Path) -> Path:
    (tmp_path / "helper.py").write_text("SIZE = 3\n")
    file = tmp_path / "my_data.py"
    file.write_text(FUNCTIONS)
    return file


@pytest.mark.parametrize("spelling", ["cifar10", "uoft-cs/cifar10"])
def test_a_mirror_is_read_with_published_constants(tmp_path, monkeypatch, spelling):
    _, test = write_set(tmp_path / "cifar10")
    monkeypatch.setenv("GEOQUANT_DATA_DIR", str(tmp_path))
    data = load_images(spelling, "test")
    assert np.array_equal(data.images, test)
    assert (data.name, data.split) == ("cifar10", "test")
    ((inputs, targets),) = load_data(spelling, "test")
    wanted = (test.transpose(0, 3, 1, 2) / 255 - np.reshape([0.4914, 0.4822, 0.4465], (3, 1, 1))) / np.reshape(
        [0.2470, 0.2435, 0.2616], (3, 1, 1)
    )
    np.testing.assert_allclose(inputs.numpy(), wanted, atol=2e-6)
    assert targets.tolist() == [0, 1, 2, 3]


def test_another_folder_is_normalised_by_its_own_train_split(tmp_path):
    train, test = write_set(tmp_path / "own")
    assert load_images(tmp_path / "own", "test").statistics is None
    measured = pixel_statistics(train)
    ((inputs, _),) = load_data(tmp_path / "own", "test")
    undone = inputs * torch.tensor(measured.std).view(3, 1, 1) + torch.tensor(measured.mean).view(3, 1, 1)
    np.testing.assert_allclose(undone.numpy() * 255, test.transpose(0, 3, 1, 2), atol=1e-3)


def test_the_second_load_comes_from_the_cache_and_is_the_same(tmp_path, own_cache, monkeypatch):
    write_set(tmp_path / "own")
    first = load_images(tmp_path / "own", "train")
    monkeypatch.setattr("geoquant.data.load.read_images", None)
    second = load_images(tmp_path / "own", "train")
    assert np.array_equal(first.images, second.images)
    assert second.statistics == first.statistics
    a, b = second.split_off(3)
    assert len(a) + len(b) == 8


def test_grey_sets_refuse_imagenet_before_any_batch(tmp_path):
    write_set(tmp_path / "grey", channels=1)
    with pytest.raises(DataError, match="grey is grey and ImageNet's constants are for RGB"):
        load_data(tmp_path / "grey", "test", normalize="imagenet")


def test_limit_seed_and_batch_size_reach_the_images():
    batches = load_data("digits", "train", batch_size=8, limit=20, seed=5)
    assert [len(targets) for _, targets in batches] == [8, 8, 4]
    assert (batches.samples, batches.description) == (20, "digits train, 20 of 1437 images, seed 5")


def test_functions_of_a_file(functions):
    assert [float(batch.sum()) for batch in load_data(f"{functions}:plain", "train")] == [0.0, 6.0]
    assert [len(batch) for batch in load_data(f"{functions}:plain", "train", limit=4)] == [3, 1]
    for name, value in (("lazy", 3.0), ("anything", 1.0)):
        batches = load_data(f"{functions}:{name}", "test")
        totals = [float(batch["x"].sum() if name == "lazy" else batch.sum()) for batch in batches]
        assert totals == [value]
        assert len(list(batches)) == len(list(batches)) == 1
    assert load_data(f"{functions}:Holder.batches", "test").samples == 1


def test_functions_of_a_module_in_the_working_folder(tmp_path, functions, monkeypatch):
    functions.rename(tmp_path / "module_of_this_test.py")
    monkeypatch.chdir(tmp_path)
    assert load_data("module_of_this_test:plain", "train").samples == 6


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nothing", "has no 'nothing'"),
        ("plian", r"has no 'plian' \(did you mean 'plain'\?\)"),
        ("number", "is int; expected a callable"),
        ("poisoned", "batch 1 holds 1 NaN"),
    ],
)
def test_bad_functions_are_named(functions, name, sentence):
    with pytest.raises(DataError, match=sentence):
        load_data(f"{functions}:{name}", "train")


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("no_such_module:batches", "there is no module 'no_such_module'"),
        ("geoquant.no_such:batches", "there is no module 'geoquant.no_such'"),
        ("no_such.py:batches", "there is no file no_such.py"),
        ("story.txt", "text files need a tokenizer; pass a callable that gives batches"),
    ],
)
def test_what_is_not_there_is_named(spec, sentence):
    with pytest.raises(DataError, match=sentence):
        load_data(spec, "train")


def test_a_file_where_a_folder_belongs(tmp_path):
    write_set(tmp_path)
    with pytest.raises(DataError, match="is a file; expected the folder"):
        load_data(tmp_path / "test-00000-of-00001.parquet", "test")


def test_errors_of_the_users_own_code_are_told_with_their_cause(tmp_path, functions):
    with pytest.raises(DataError, match="raised RuntimeError: the user's own problem") as caught:
        load_data(f"{functions}:broken", "train")
    assert isinstance(caught.value.__cause__, RuntimeError)
    (tmp_path / "needs.py").write_text("import no_such_dependency\n")
    with pytest.raises(DataError, match="no_such_dependency") as caught:
        load_data(f"{tmp_path / 'needs.py'}:batches", "train")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


MIRROR = os.environ.get("GEOQUANT_DATA_DIR")


@pytest.mark.skipif(MIRROR is None, reason="needs a mirror of the real sets in GEOQUANT_DATA_DIR")
def test_the_real_mirror_has_the_published_statistics(monkeypatch):
    monkeypatch.setenv("GEOQUANT_DATA_DIR", str(MIRROR))
    for name, count in (("mnist", 10_000), ("cifar10", 10_000)):
        data = load_images(name, "test")
        assert np.bincount(data.labels).sum() == count
        assert data.statistics is not None
        np.testing.assert_allclose(pixel_statistics(data.images).mean, data.statistics.mean, atol=0.005)
