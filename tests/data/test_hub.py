"""Are the files of a data set found where they are, in the stated order of places, and is every miss explained?"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from geoquant.data.hub import KNOWN_SETS, find_known, locate, split_files
from geoquant.errors import DataError, MissingExtraError


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


class Hub:
    """Stands in for `snapshot_download`; what the real one asks a server is checked in test_hub_server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: list[tuple[str, dict[str, object]]] = []

    def __call__(self, name: str, **options: object) -> str:
        self.calls.append((name, options))
        return str(self.folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    fake = Hub(touch(tmp_path / "snapshot", "plain_text/train-00000-of-00001.parquet"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", fake)
    return fake


def test_both_spellings_are_one_set():
    assert [(known.name, known.hub) for known in KNOWN_SETS] == [
        ("mnist", "ylecun/mnist"),
        ("fashion_mnist", "zalando-datasets/fashion_mnist"),
        ("cifar10", "uoft-cs/cifar10"),
        ("svhn", "ufldl-stanford/svhn"),
    ]
    assert all(find_known(known.name) is find_known(known.hub) is known for known in KNOWN_SETS)


def test_a_folder_comes_before_the_mirror_and_the_mirror_before_the_hub(tmp_path, monkeypatch, hub):
    folder = touch(tmp_path / "mine" / "cifar10", "train-00000-of-00001.parquet")
    mirror = touch(tmp_path / "mirror", "cifar10/train-00000-of-00001.parquet")
    monkeypatch.chdir(tmp_path)
    assert locate("cifar10", "train").files[0].is_relative_to(hub.folder)
    monkeypatch.setenv("GEOQUANT_DATA_DIR", str(mirror))
    for name in ("cifar10", "uoft-cs/cifar10"):
        assert locate(name, "train").files[0].is_relative_to(mirror)
    monkeypatch.chdir(tmp_path / "mine")
    assert locate("cifar10", "train").files[0].resolve().is_relative_to(folder)
    assert len(hub.calls) == 1


def test_a_folder_of_that_name_without_such_files_does_not_hide_the_mirror(tmp_path, monkeypatch):
    touch(tmp_path / "mnist", "raw/train-images-idx3-ubyte")
    mirror = touch(tmp_path / "mirror", "mnist/test-00000-of-00001.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEOQUANT_DATA_DIR", str(mirror))
    assert locate("mnist", "test").files[0].is_relative_to(mirror)


def test_the_hub_is_asked_for_one_split_of_one_configuration(hub):
    locate("uoft-cs/cifar10", "train")
    with pytest.raises(DataError, match="has no files test-"):
        locate("svhn", "test")
    (cifar, cifar_options), (svhn, svhn_options) = hub.calls
    assert (cifar, svhn) == ("uoft-cs/cifar10", "ufldl-stanford/svhn")
    assert cifar_options["repo_type"] == svhn_options["repo_type"] == "dataset"
    assert svhn_options["allow_patterns"] == ["cropped_digits/test.parquet", "cropped_digits/test-*.parquet"]


def test_other_sets_of_the_hub_and_of_the_mirror_are_found_by_name(tmp_path, monkeypatch, hub):
    assert locate("uoft-cs/cifar100", "train").name == "cifar100"
    assert hub.calls[0][0] == "uoft-cs/cifar100"
    monkeypatch.setenv("GEOQUANT_DATA_DIR", str(touch(tmp_path / "mirror", "own/train.parquet")))
    assert locate("own", "train").known is None


def test_shards_come_in_order_from_the_one_folder_that_has_them(tmp_path):
    names = [f"data/train-0000{i}-of-00003.parquet" for i in (2, 0, 1)]
    folder = touch(tmp_path, *names, "data/test-00000-of-00001.parquet", ".cache/train-00000-of-00001.parquet", "a.md")
    assert [file.name[6:11] for file in split_files(folder, "train")] == ["00000", "00001", "00002"]
    assert split_files(folder, "validation") == ()


def test_the_configuration_decides_between_folders(tmp_path):
    folder = touch(tmp_path, "cropped_digits/test-00000-of-00001.parquet", "full_numbers/test-00000-of-00001.parquet")
    assert split_files(folder, "test", "cropped_digits")[0].parent.name == "cropped_digits"
    with pytest.raises(DataError, match=r"several folders \(cropped_digits, full_numbers\)"):
        split_files(folder, "test")


def test_a_missing_shard_is_noticed(tmp_path):
    with pytest.raises(DataError, match="lacks 2 of 4 files like train-00000-of-00004"):
        split_files(touch(tmp_path, "train-00000-of-00004.parquet", "train-00003-of-00004.parquet"), "train")


@pytest.mark.parametrize(
    ("name", "split", "sentence"),
    [
        ("cifra10", "train", r"'cifra10' is no folder, no known data set \(did you mean 'cifar10'\?\)"),
        ("./nothing", "train", "is no folder"),
        ("/nothing/at/all", "train", "is no folder"),
        ("cifar10", "validation", "cifar10 has no split 'validation'; expected 'train' or 'test'"),
        ("own", "tr*", r"'tr\*' is no name of a split"),
        ("empty", "train", r"empty has no files train-\*.parquet"),
        ("story", "train", "text files need a tokenizer; pass a callable that gives batches"),
    ],
)
def test_a_miss_is_explained_without_asking_the_hub(tmp_path, monkeypatch, hub, name, split, sentence):
    touch(tmp_path, "empty/readme.md", "story/input.txt")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=sentence):
        locate(name, split)
    assert hub.calls == []


def test_a_mirror_of_texts_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOQUANT_DATA_DIR", str(touch(tmp_path, "tinystories/train.txt")))
    with pytest.raises(DataError, match="text files need a tokenizer"):
        locate("tinystories", "train")


def test_without_the_extra_the_user_learns_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        MissingExtraError, match=r"pip install geoquant\[hf\], or set GEOQUANT_DATA_DIR to .* mnist/train-"
    ):
        locate("mnist", "train")
