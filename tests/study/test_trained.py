"""A net is trained once for its recipe, and comes back bit for bit; what is damaged is trained anew."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from geoquant.study import trained as module
from geoquant.study.trained import Recipe, kept_, trained

RECIPE = Recipe("digits_cnn", "digits", 300, 1, 0)


def weights(recipe: Recipe, folder: Path) -> dict[str, torch.Tensor]:
    return trained(recipe, folder).model.state_dict()


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


def test_a_second_asker_gets_the_same_net_without_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = trained(RECIPE, tmp_path)
    monkeypatch.setattr(module, "fit_classifier_", lambda *_, **__: pytest.fail("trained again"))
    second = trained(RECIPE, tmp_path)
    assert same(first.model.state_dict(), second.model.state_dict())
    assert first.seconds == second.seconds > 0


def test_training_is_deterministic_and_differs_by_recipe(tmp_path: Path) -> None:
    once, again = weights(RECIPE, tmp_path / "a"), weights(RECIPE, tmp_path / "b")
    other = weights(Recipe("digits_cnn", "digits", 300, 1, 1), tmp_path / "a")
    assert same(once, again)
    assert not same(once, other)


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda _: b"", lambda data: b"x" + data[1:]])
def test_a_damaged_file_is_trained_anew(tmp_path: Path, damage: object) -> None:
    first = weights(RECIPE, tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(damage(file.read_bytes()))  # type: ignore[operator]
    assert same(first, weights(RECIPE, tmp_path))


def test_calibration_images_are_no_training_images(tmp_path: Path) -> None:
    found = trained(RECIPE, tmp_path)
    assert len(found.held_out) == round(0.1 * 1437)
    rows = {image.tobytes() for image in found.test.images}
    assert not rows & {image.tobytes() for image in found.held_out.images}


def test_weights_of_another_shape_are_not_loaded(tmp_path: Path) -> None:
    kept_(torch.nn.Linear(2, 2), "one", lambda: None, tmp_path)
    calls: list[int] = []
    kept_(torch.nn.Linear(3, 2), "one", lambda: calls.append(1), tmp_path)
    assert calls == [1]


def test_tied_weights_are_kept_and_stay_tied(tmp_path: Path) -> None:
    def tied() -> nn.ModuleDict:
        net = nn.ModuleDict({"embedding": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
        net["head"].weight = net["embedding"].weight
        return net

    def refuse() -> None:
        pytest.fail("trained again")

    first, second = tied(), tied()
    kept_(first, "tied", lambda: nn.init.ones_(first["head"].weight), tmp_path)
    kept_(second, "tied", refuse, tmp_path)
    assert second["head"].weight is second["embedding"].weight
    assert torch.equal(second["head"].weight, torch.ones(5, 3))
