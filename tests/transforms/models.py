"""Nets on which every transform finds something to do, and one batch for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

VOCABULARY = 11


class Attention(nn.Module):
    """Causal attention with fewer heads for keys and values than for queries."""

    def __init__(self, width: int, heads: int, shared: int) -> None:
        super().__init__()
        self.size = width // heads
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, shared * self.size, bias=False)
        self.v = nn.Linear(width, shared * self.size)
        self.o = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, self.size)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        k, v = (each.repeat_interleave(q.shape[1] // each.shape[1], 1) for each in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a gated feed-forward, each behind an RMSNorm."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.first, self.second = nn.RMSNorm(width), nn.RMSNorm(width)
        self.attention = Attention(width, 4, 2)
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.first(x))
        y = self.second(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    """A Llama in all but positions, exact in float64 throughout."""

    def __init__(self, width: int = 12, hidden: int = 20, depth: int = 2) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleList(Block(width, hidden) for _ in range(depth))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class ConvNet(nn.Module):
    """Convolutions (one grouped) with and without batch norms, ReLU, a flattened head, and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.inner = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.outer = nn.Conv2d(4, 4, 1)
        self.head, self.last = nn.Linear(16, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)), inplace=True)
        x = x + self.outer(F.relu(self.inner(x)))
        x = F.max_pool2d(x, 2).flatten(1)
        return self.last(F.leaky_relu(self.head(x)))


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give norms scales, shifts and statistics of their own, and channels uneven weights; put in eval mode."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=generator).to(like) * (high - low) + low

    with torch.no_grad():
        for module in model.modules():
            if type(module).__name__.endswith(("Norm", "Norm2d")):
                for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
                    if tensor.is_floating_point():
                        low, high = (-0.5, 0.5) if name in ("bias", "running_mean") else (0.2, 3.0)
                        tensor.copy_(drawn(tensor, low, high))
            elif isinstance(getattr(module, "weight", None), nn.Parameter):
                weight = module.weight
                weight.mul_(drawn(weight[:1], 0.3, 3.0))
                if getattr(module, "bias", None) is not None:
                    module.bias.copy_(drawn(module.bias, -0.5, 0.5))
    return model.eval()


def _tokens(length: int = 6, vocabulary: int = VOCABULARY) -> Tensor:
    return torch.randint(0, vocabulary, (3, length), generator=torch.Generator().manual_seed(5))


def _images() -> Tensor:
    return torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(5))


BOTH = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2}
BOTH |= {"num_attention_heads": 4, "max_position_embeddings": 16}


def llama(tied: bool = False, attention: str = "sdpa") -> nn.Module:
    config = transformers.LlamaConfig(**BOTH, num_key_value_heads=2, tie_word_embeddings=tied)
    return transformers.LlamaForCausalLM._from_config(config, attn_implementation=attention)


def gpt2() -> nn.Module:
    named = {"n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=VOCABULARY, **named))


def bert() -> nn.Module:
    return transformers.BertForSequenceClassification(transformers.BertConfig(**BOTH, num_labels=3))


def gemma() -> nn.Module:
    config = transformers.GemmaConfig(**BOTH, num_key_value_heads=2, head_dim=4, tie_word_embeddings=False)
    return transformers.GemmaForCausalLM(config)


def _named(ids: Tensor) -> dict[str, Tensor]:
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


# Model, batch, and whether it computes in float64 throughout (transformers' norms do not).
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], bool]] = {
    "llama in torch": (Llama, _tokens, True),
    "conv net": (ConvNet, _images, True),
    "llama": (llama, lambda: _named(_tokens()), False),
    "llama, eager": (lambda: llama(attention="eager"), lambda: _named(_tokens()), False),
    "gpt2": (gpt2, lambda: _named(_tokens()), True),
    "bert": (bert, lambda: _named(_tokens()), True),
    "gemma": (gemma, lambda: _named(_tokens()), False),
}


def case(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Any]:
    """Return the model of a case, lively and in eval mode, and its batch."""
    make, batch, _ = CASES[name]
    torch.manual_seed(3)
    model, given = lively(make()).to(dtype), batch()
    return model, given.to(dtype) if isinstance(given, Tensor) and given.is_floating_point() else given
