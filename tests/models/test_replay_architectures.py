"""Replays of whole architectures are exact: convolutional nets, torch's attention, Hugging Face models."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BatchEncoding,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from geoquant.models import (
    Replay,
    find_sites,
    fold_batch_norm_,
)
from geoquant.models.zoo import digits_cnn, resnet18_imagenet, resnet20_cifar10, transformer6
from models.replays import X, check_exact


@pytest.mark.parametrize("folded", [False, True])
def test_convolutional_zoo_is_exact(folded: bool) -> None:
    torch.manual_seed(0)
    cases = [(digits_cnn(), (4, 1, 8, 8)), (resnet20_cifar10(), (2, 3, 32, 32))]
    for model, shape in cases:
        if folded:
            fold_batch_norm_(model)
        batch = torch.randn(shape).contiguous(memory_format=torch.channels_last)
        check_exact(model.to(memory_format=torch.channels_last), batch)


def test_in_place_residual_network_is_exact() -> None:
    torch.manual_seed(0)
    replay = check_exact(resnet18_imagenet(5), torch.randn(1, 3, 32, 32))
    last, *_, first = reversed(find_sites(replay._model))
    assert replay.fraction(first) == 1
    assert replay.fraction(last) < 0.01


def test_transformer_with_padding_is_exact() -> None:
    torch.manual_seed(0)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    batch = {"input_ids": torch.randint(256, (2, 4)), "attention_mask": mask}
    replay = check_exact(transformer6(width=16, hidden=32), batch)
    fractions = {site.name: replay.fraction(site) for site in find_sites(replay._model)}
    assert fractions["layers.0.attention.q"] > fractions["layers.3.attention.q"] > fractions["layers.5.attention.q"]


@pytest.mark.parametrize("fused", [True, False])
def test_torch_attention_is_exact(fused: bool) -> None:
    """The fused inference kernels read all weights of a layer at once, without calling its parts."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=fused)
    model = nn.Sequential(nn.Linear(6, 8), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 3))
    replay = check_exact(model, torch.randn(3, 4, 6))
    fractions = [replay.fraction(site) for site in find_sites(model)]
    assert fractions == sorted(fractions, reverse=True)
    assert fractions[0] == 1
    assert fractions[-1] < 0.1


def test_multihead_attention_output_projection_is_never_called_but_found() -> None:
    torch.manual_seed(0)

    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.attention = nn.Linear(6, 8), nn.MultiheadAttention(8, 2, kdim=6, batch_first=True)
            self.after = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.before(x)
            return self.after(self.attention(y, x, y)[0])

    check_exact(Attends(), X.view(1, 5, 6))


def llama(tied: bool) -> nn.Module:
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config)


def bert(_: bool) -> nn.Module:
    config = BertConfig(vocab_size=32, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12)
    return BertForSequenceClassification(config)


def gpt2(_: bool) -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=8, n_embd=8, n_layer=2, n_head=2))


@pytest.mark.parametrize(("build", "tied"), [(llama, False), (llama, True), (bert, True), (gpt2, True)])
def test_huggingface_models_are_exact(build: Callable[[bool], nn.Module], tied: bool) -> None:
    torch.manual_seed(0)
    model = build(tied)
    ids = torch.randint(32, (2, 6))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    replay = check_exact(model, BatchEncoding({"input_ids": ids, "attention_mask": mask}))
    sites = find_sites(model)
    fractions = [replay.fraction(site) for site in sites]
    assert sum(fractions) / len(sites) < 0.72
    assert fractions[-1] < 0.35  # embeddings cost a whole forward, the last layer a small part
    with torch.inference_mode():  # other operations are visible there; the answer is the same
        again = Replay(model, replay._batch)
    assert [again.fraction(site) for site in sites] == fractions
    if tied and build is llama:  # the embedding is read first of all, so its tied head costs everything
        assert replay.fraction(sites[0]) == 1
