"""Rotations: orthogonal at every size, spread outliers, and stop where a rotation would change the function."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from geoquant.errors import GeoquantError
from geoquant.grids import Grid
from geoquant.models import inference, predict
from geoquant.transforms import TransformReport, random_hadamard, transform_, untie_
from transforms.models import Llama, _tokens, case, lively, llama


def rotated(model: nn.Module, batch: object, seed: int = 0) -> TransformReport:
    (report,) = transform_(model, "hadamard", [batch], seed=seed)
    return report


@pytest.mark.parametrize("size", [1, 2, 3, 12, 20, 64, 172])
def test_rotations_are_orthogonal_and_even(size: int) -> None:
    q = random_hadamard(size, seed=3)
    torch.testing.assert_close(q @ q.T, torch.eye(size, dtype=torch.float64))
    assert float(q.abs().max()) <= (2 / size) ** 0.5 + 1e-12
    assert torch.equal(q, random_hadamard(size, seed=3))
    assert size < 4 or not torch.equal(q, random_hadamard(size, seed=4))


def test_a_rotation_needs_a_size() -> None:
    with pytest.raises(GeoquantError, match="at least 1, got 0"):
        random_hadamard(0)


def test_one_large_channel_is_spread_over_all() -> None:
    """A channel of the stream that is 30 times the others: after the rotation four bits lose far less."""
    torch.manual_seed(0)
    model = lively(Llama(width=16, hidden=24)).double()
    with torch.no_grad():
        model.tokens.weight[:, 2] *= 30
    weight = model.tokens.weight.data
    peak = float((weight.abs().amax(1) / weight.square().mean(1).sqrt()).mean())
    lost = _lost(weight)
    rotated(model, _tokens())
    even = float((weight.abs().amax(1) / weight.square().mean(1).sqrt()).mean())
    assert peak > 3
    assert even < 2
    assert _lost(weight) < lost / 2


def _lost(weight: Tensor) -> float:
    weight = weight.float()
    return float((Grid.parse("int4:maxabs").quantize(weight).dequantize() - weight).square().sum())


def test_the_seed_chooses_the_signs() -> None:
    first, second = (lively(Llama()).double() for _ in range(2))
    for seed, model in enumerate((first, second)):
        torch.manual_seed(0)
        rotated(model, _tokens(), seed)
    assert not torch.allclose(first.tokens.weight, second.tokens.weight)


def test_a_tied_head_is_refused_until_it_has_its_own_weight() -> None:
    torch.manual_seed(0)
    model = lively(llama(tied=True))
    batch = {"input_ids": _tokens()}
    report = rotated(model, batch)
    (stream,) = [each for each in report.skipped if "residual stream" in each.source]
    assert "tied to another" in stream.reason
    assert "untie_" in stream.reason
    assert len(report.applied) == 2, "values can be rotated all the same"
    with inference(model):
        wanted = predict(model, batch)
    assert untie_(model) == ("lm_head",)
    assert not model.config.tie_word_embeddings
    assert untie_(model) == ()
    report = rotated(model, batch)
    assert report.applied[0].source == "model.embed_tokens"
    with inference(model):
        torch.testing.assert_close(predict(model, batch), wanted, atol=1e-5, rtol=1e-5)


class Odd(Llama):
    """A Llama that does one thing more with its residual stream."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.extra = way, nn.Linear(12, 12)
        self.scale = nn.Parameter(torch.full((12,), 1.5))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        if self.way == "bare layer":
            x = x + self.extra(x)
        elif self.way == "function":
            x = x + torch.tanh(x)
        elif self.way == "vector":
            x = x * self.scale
        elif self.way == "outside":
            x = x + self.scale
        elif self.way == "flipped":
            x = x + x.flip(-1)
        elif self.way == "number":
            x = 3.0 * (x + x) / 2 - x
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("bare layer", "'extra' reads it without a norm before"),
        ("function", "'tanh' reads it"),
        ("vector", "'mul' reads it"),
        ("outside", "a tensor from outside is added to it"),
        ("flipped", "'flip' reads it"),
    ],
)
def test_a_stream_that_cannot_be_rotated_says_why(way: str, reason: str) -> None:
    model = lively(Odd(way)).double()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = rotated(model, _tokens())
    assert report.skipped[0].reason == reason
    names = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert all(".attention.v." in name or ".attention.o." in name for name in names), "norms stay too"


def test_multiples_of_the_stream_are_stream() -> None:
    report = rotated(lively(Odd("number")).double(), _tokens())
    assert report.applied[0].source == "tokens"


def test_layer_norms_are_refused() -> None:
    model, batch = case("gpt2")
    untie_(model)
    report = rotated(model, batch)
    assert any("(LayerNorm) reads it, and a rotation does not pass" in each.reason for each in report.skipped)
