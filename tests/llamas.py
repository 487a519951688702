"""Tiny random Llama models of transformers that several rooms' tests share."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn


def tiny_llama(seed: int = 0, tied: bool = False, dtype: torch.dtype = torch.float32, **changes: Any) -> nn.Module:
    """Return a two-layer Llama of 20,000 weights, in eval mode."""
    shape = {
        "vocab_size": 48,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    config = transformers.LlamaConfig(
        **{**shape, "tie_word_embeddings": tied, "attn_implementation": "eager", **changes}
    )
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()  # .to() would round the angles
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
    return model


def tokens(rows: int = 2, length: int = 12, vocabulary: int = 48, seed: int = 1) -> dict[str, torch.Tensor]:
    """Return a batch for `tiny_llama`."""
    generator = torch.Generator().manual_seed(seed)
    return {"input_ids": torch.randint(0, vocabulary, (rows, length), generator=generator)}
