"""Any way of calling a model gives the logits that a plain call gives."""

from __future__ import annotations

from collections import UserDict, namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BatchEncoding, BertConfig, BertForSequenceClassification

from geoquant.errors import DataError, ModelError
from geoquant.models import (
    batch_size,
    check_finite,
    evaluating,
    inference,
    logits_of,
    move,
    predict,
    prediction_mask,
    targets_of,
)


class TwoInputs(nn.Module):
    """Takes two tensors, by position or by name, and says which call it got."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.left(a) - self.right(b)


@pytest.fixture
def pair() -> tuple[TwoInputs, Tensor, Tensor]:
    torch.manual_seed(0)
    return TwoInputs(), torch.randn(4, 3), torch.randn(4, 3)


def test_every_form_of_batch_is_the_same_call(pair: tuple[TwoInputs, Tensor, Tensor]) -> None:
    model, a, b = pair
    y = torch.zeros(4, dtype=torch.long)
    expected = model(a, b)
    batches: list[Any] = [
        ((a, b), y),
        [(a, b), y],
        ({"b": b, "a": a}, y),
        {"b": b, "a": a},
        {"b": b, "a": a, "labels": y},
        UserDict({"b": b, "a": a}),
        BatchEncoding({"b": b, "a": a, "label": y}),
    ]
    for batch in batches:
        assert torch.equal(predict(model, batch), expected)


def test_forward_overrides(pair: tuple[TwoInputs, Tensor, Tensor]) -> None:
    model, a, b = pair
    swapped = predict(model, {"odd": a}, lambda m, batch: (m(b, batch["odd"]), "rest"))
    assert torch.equal(swapped, model(b, a))


def test_huggingface_model_with_and_without_labels() -> None:
    config = BertConfig(
        vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12, num_labels=3
    )
    model = BertForSequenceClassification(config)
    batch = BatchEncoding({"input_ids": torch.randint(16, (2, 5)), "attention_mask": torch.ones(2, 5)})
    with inference(model):
        plain = predict(model, batch)
        labelled = predict(model, {**batch, "labels": torch.tensor([0, 1])})
        bare = predict(model, {**batch, "labels": torch.tensor([0, 1]), "return_dict": False})
    assert plain.shape == (2, 3)
    assert torch.equal(plain, labelled)
    assert torch.equal(plain, bare)  # (loss, logits): the loss has no axis and is passed over


def test_unknown_batches_and_arguments_are_refused(pair: tuple[TwoInputs, Tensor, Tensor]) -> None:
    model, a, b = pair
    with pytest.raises(DataError, match="tuple of 3 parts"):
        predict(model, (a, b, a))
    with pytest.raises(DataError, match="type str"):
        predict(model, "text")
    with pytest.raises(ModelError, match=r"does not take this batch \(a, c\).*pass forward="):
        predict(model, {"a": a, "c": b})
    with pytest.raises(ModelError, match="missing a required argument: 'b'"):
        predict(model, a)


def test_an_error_inside_the_model_is_the_callers_own(pair: tuple[TwoInputs, Tensor, Tensor]) -> None:
    """A TypeError raised in forward must not be taken for a wrong signature."""

    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise TypeError("my own mistake")

    with pytest.raises(TypeError, match="my own mistake"):
        predict(Broken(), pair[1])


Output = namedtuple("Output", ["logits", "extra"])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda z: z,
        lambda z: {"loss": 1, "logits": z},
        lambda z: Output(z, None),
        lambda z: type("Answer", (), {"logits": z})(),
        lambda z: (None, z, 2 * z),
        lambda z: [torch.tensor(1.0), z],
    ],
)
def test_logits_are_found(wrap: Callable[[Tensor], Any]) -> None:
    z = torch.randn(2, 3)
    assert logits_of(wrap(z)) is z


@pytest.mark.parametrize(
    ("output", "described"),
    [
        ("word", "str"),
        (torch.tensor(1.0), r"shape \(\)"),
        ({"last_hidden_state": torch.zeros(1)}, "dict with last_hidden_state"),
        ((1, None), "tuple of int, NoneType"),
        ([], "list of nothing"),
        (None, "NoneType"),
    ],
)
def test_outputs_without_logits_say_what_came(output: Any, described: str) -> None:
    with pytest.raises(ModelError, match=described):
        logits_of(output)


def test_targets() -> None:
    x, y = torch.zeros(2, 3), torch.tensor([0, 1])
    assert targets_of((x, y)) is y
    for key in ("labels", "label", "targets"):
        assert targets_of({"x": x, key: y}) is y
    assert targets_of(x) is targets_of({"x": x}) is targets_of((x, None)) is None


def test_prediction_mask_only_where_it_counts_predictions() -> None:
    mask = torch.tensor([[1, 0]])
    assert prediction_mask({"attention_mask": mask}, torch.zeros(1, 2, 5)).tolist() == [[True, False]]  # type: ignore[union-attr]
    assert prediction_mask(({"attention_mask": mask}, None), torch.zeros(1, 2, 5)) is not None
    assert prediction_mask({"attention_mask": mask}, torch.zeros(1, 5)) is None
    assert prediction_mask({"attention_mask": mask}, torch.zeros(1, 1, 5)) is None
    assert prediction_mask(torch.zeros(1), torch.zeros(1, 2, 5)) is None


def test_move_reaches_every_tensor() -> None:
    batch = ({"ids": torch.zeros(1), "more": [torch.zeros(1), 3]}, Output(torch.zeros(1), "kept"))
    moved = move(batch, "meta")
    assert moved[0]["ids"].is_meta
    assert moved[0]["more"][0].is_meta
    assert moved[0]["more"][1] == 3
    assert moved[1].logits.is_meta
    assert moved[1].extra == "kept"
    assert move(BatchEncoding({"ids": torch.zeros(1)}), "meta")["ids"].is_meta


def test_batch_size_counts_samples() -> None:
    x, y = torch.zeros(4, 2), torch.zeros(7)
    assert [batch_size(batch) for batch in (x, (x, y), {"a": torch.tensor(1.0), "b": x}, ((x, y), y))] == [4] * 4
    with pytest.raises(DataError, match="none of its inputs"):
        batch_size({"text": "words"})


def test_evaluating_restores_each_flag_even_after_an_error() -> None:
    class Frozen(nn.BatchNorm1d):
        def train(self, mode: bool = True) -> Frozen:
            return super().train(False)  # a common way to freeze statistics

    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(), Frozen(2)))
    model.train()
    model[0].eval()
    before = [module.training for module in model.modules()]

    def interrupted() -> None:
        assert not any(module.training for module in model.modules())
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), evaluating(model), evaluating(model):
        interrupted()
    assert [module.training for module in model.modules()] == before == [True, False, True, True, False]


def test_inference_needs_no_graph() -> None:
    model = nn.Linear(2, 2)
    with inference(model):
        assert model(torch.zeros(1, 2)).is_inference()


@pytest.mark.parametrize(("value", "word"), [(float("nan"), "NaN"), (float("inf"), "Inf"), (-float("inf"), "Inf")])
def test_non_finite_weights_are_named(value: float, word: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    check_finite(model)
    with torch.no_grad():
        model[1].weight[1, 0] = value
    with pytest.raises(ModelError, match=rf"'1\.weight' holds {word}"):
        check_finite(model)


def test_infinite_masks_are_no_fault_but_nan_statistics_are() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2))
    model.register_buffer("mask", torch.tensor([0.0, -float("inf")]))
    check_finite(model)
    model[0].running_var.fill_(float("nan"))
    with pytest.raises(ModelError, match=r"0\.running_var"):
        check_finite(model)
