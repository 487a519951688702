"""Nets with their data, and sentences where something is not at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from geoquant.errors import StudyError
from geoquant.study.at_hand import at_hand, missing_data, weights_file
from geoquant.study.cases import RESNET20, STORIES, case_of, missing

DIGITS: dict[str, Any] = {
    "net": "digits_cnn",
    "data": "digits",
    "images": 200,
    "epochs": 1,
    "seed": 0,
    "calibration": 64,
    "test": 100,
}


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No image sets and no weights, and a cache of one's own."""
    for variable in ("GEOQUANT_DATA_DIR", "GEOQUANT_WEIGHTS_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("GEOQUANT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def test_a_trained_net_comes_with_disjoint_test_images(nothing: Path) -> None:
    case = case_of(DIGITS)
    assert missing(DIGITS) is None
    assert not case.model.training
    assert [len(batch[0]) for batch in case.calibration] == [64]
    assert sum(len(batch[0]) for batch in case.test) == 100
    images, labels = case.source.batch(0, 0)
    assert len(images) == len(labels) == 128
    shown = {row.numpy().tobytes() for row in torch.cat([batch[0] for batch in case.calibration])}
    assert not shown & {row.numpy().tobytes() for batch in case.test for row in batch[0]}


@pytest.mark.parametrize(
    ("configuration", "word"),
    [
        ({"net": RESNET20, "data": "cifar10"}, "cifar10_resnet20"),
        ({"net": STORIES, "data": "TinyStories"}, "stories260K"),
        ({"net": "mlp2_mnist", "data": "mnist"}, "mnist"),
        ({"part": "toy"}, None),
    ],
)
def test_what_is_missing_is_named(nothing: Path, configuration: dict[str, Any], word: str | None) -> None:
    reason = missing(configuration)
    assert reason is None if word is None else word in str(reason)


def test_pretrained_nets_without_weights_say_so(nothing: Path) -> None:
    for net in (RESNET20, STORIES):
        with pytest.raises(StudyError, match="GEOQUANT_WEIGHTS_DIR"):
            case_of({**DIGITS, "net": net})


def test_image_sets_need_both_splits(nothing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEOQUANT_DATA_DIR", str(nothing))
    folder = nothing / "mnist"
    folder.mkdir()
    (folder / "train-00000-of-00001.parquet").write_bytes(b"")
    assert not at_hand("mnist")
    assert "mnist" in str(missing_data("mnist"))
    (folder / "test-00000-of-00001.parquet").write_bytes(b"")
    assert at_hand("mnist")
    (folder / "train-00000-of-00002.parquet").write_bytes(b"")  # a shard is missing
    assert not at_hand("mnist")


def test_weights_are_found_by_name(nothing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEOQUANT_WEIGHTS_DIR", str(nothing))
    assert weights_file("a.safetensors") is None
    np.zeros(1).tofile(nothing / "a.safetensors")
    assert weights_file("a.safetensors") == nothing / "a.safetensors"
