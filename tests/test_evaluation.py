"""Means, their standard errors, and divergences, against slow references."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from geoquant.errors import DataError
from geoquant.evaluation import Divergence, WeightedMean, divergence, evaluate, kl_per_sample, logits
from geoquant.plan import uniform_plan
from geoquant.quantize import quantize
from nets import small_batches, small_net


def test_equal_weights_give_the_textbook_standard_error() -> None:
    values = torch.randn(50, dtype=torch.float64)
    mean = WeightedMean()
    for chunk in values.split(7):
        mean.add(chunk, torch.ones(len(chunk)))
    result = mean.result()
    assert result.value == pytest.approx(float(values.mean()))
    assert result.stderr == pytest.approx(float(values.std()) / math.sqrt(50))


def test_weighted_standard_error_covers_the_truth() -> None:
    """Ratio estimator: nominal 95 % intervals should hold the true mean in 90 to 99 % of draws."""
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for _ in range(400):
        weights = torch.randint(1, 30, (200,), generator=generator).double()
        values = 0.3 + torch.randn(200, generator=generator).double() / weights.sqrt()
        mean = WeightedMean()
        mean.add(values, weights)
        result = mean.result()
        hits += abs(result.value - 0.3) <= 1.96 * result.stderr
    assert 0.90 <= hits / 400 <= 0.99


def test_kl_equals_the_library_and_ignores_masked_positions() -> None:
    p, q = torch.randn(4, 6, 9), torch.randn(4, 6, 9)
    mask = torch.rand(4, 6) < 0.6
    mask[:, 0] = True
    values, counts = kl_per_sample(p, q, mask)
    each = F.kl_div(q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    for row in range(4):
        assert float(values[row]) == pytest.approx(float(each[row][mask[row]].mean()), rel=1e-5)
    assert counts.tolist() == mask.sum(1).tolist()


def test_evaluate_counts_by_hand() -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.one_hot(x, 3).float() * 100

    labels = torch.tensor([0, 1, 2, 2])
    result = evaluate(Fixed(), [(torch.tensor([0, 1, 2, 0]), labels)])
    assert result.accuracy.value == 0.75
    assert result.cross_entropy.value == pytest.approx(25.0, rel=1e-4)


def test_batch_size_does_not_change_the_result() -> None:
    net, batches = small_net(), small_batches(4)
    whole = [(torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches]))]
    one, two = evaluate(net, batches), evaluate(net, whole)
    assert one.accuracy == two.accuracy
    assert one.cross_entropy.value == pytest.approx(two.cross_entropy.value, rel=1e-6)
    assert one.cross_entropy.stderr == pytest.approx(two.cross_entropy.stderr, rel=1e-4)


def test_divergence_from_known_logits_is_the_divergence() -> None:
    net, batches = small_net(), small_batches()
    rounded = quantize(net, uniform_plan(net, "int2"))
    result = evaluate(rounded, batches, reference=logits(net, batches))
    assert result.kl == divergence(net, rounded, batches)
    assert evaluate(rounded, batches).kl is None


def test_divergence_is_zero_only_for_equal_models() -> None:
    net, batches = small_net(), small_batches()
    assert divergence(net, net, batches).value == 0
    assert divergence(net, quantize(net, uniform_plan(net, "int2")), batches).value > 1e-4


def test_missing_targets_are_named() -> None:
    with pytest.raises(DataError, match="without targets"):
        evaluate(small_net(), [torch.zeros(2, 1, 8, 8)])
    with pytest.raises(DataError, match="no batch"):
        evaluate(small_net(), [])
    with pytest.raises(DataError, match="do not fit"):
        evaluate(small_net(), [(torch.zeros(2, 1, 8, 8), torch.zeros(3, dtype=torch.long))])


@pytest.mark.parametrize("padded", [False, True])
def test_causal_language_models_are_scored_as_transformers_scores_them(padded: bool) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config).eval()
    tokens = torch.randint(0, 50, (3, 9))
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens.clone()}
    if padded:
        batch["attention_mask"][1, 6:] = 0
        batch["labels"][1, 6:] = -100
    result = evaluate(model, [batch])
    with torch.no_grad():
        wanted = float(model(**batch).loss)
    assert result.cross_entropy.value == pytest.approx(wanted, rel=1e-5)
    assert result.predictions == (3 * 8 - 3 if padded else 3 * 8)


def test_the_softest_divergence_is_half_the_variance_of_what_logits_move() -> None:
    model, batches = small_net(), small_batches(4)
    changed = quantize(model, uniform_plan(model, "int3"))
    moved = torch.cat(logits(changed, batches)) - torch.cat(logits(model, batches))
    sharp, soft = Divergence(model, batches).of(changed, 1.0, 3000.0)
    assert soft == pytest.approx(0.5 * moved.double().var(-1, correction=0).numpy(), rel=0.02)
    assert sharp.mean() == pytest.approx(divergence(model, changed, batches).value, rel=1e-4)


def test_predictions_are_softened_until_a_few_samples_no_longer_make_up_the_divergence() -> None:
    model, batches = small_net(), small_batches(4)
    with torch.no_grad():
        model.head.weight.mul_(20.0)
    changed = quantize(model, uniform_plan(model, "int3"))
    found = Divergence(model, batches)
    heat, both = found.steady(changed)
    noise = [values.std() / values.mean() / math.sqrt(len(values)) for values in found.of(changed, 1.0, heat / 2, heat)]
    assert heat > 1
    assert (both == found.of(changed, 1.0, heat)).all()
    assert min(noise[:2]) > 0.05
    assert noise[2] < noise[0]
    assert Divergence(model, batches * 400).steady(changed)[0] == 1
