"""What does llama.cpp call the parts of a Llama, and how does it order the rows of its queries and keys?

Rotary embeddings turn pairs of rows: transformers pairs a row with one half a head further, llama.cpp with its
neighbour, so the rows of both projections are reordered. Whole rows move, and with them their scales, so grids stay
what they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from geoquant.errors import ExportError

MODELS = ("llama", "mistral")  # llama.cpp runs both as "llama"
_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_BLOCK = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_name(parameter: str) -> str | None:
    """Return llama.cpp's name of a parameter of a Llama, None where it is none.

    >>> gguf_name("model.layers.3.self_attn.q_proj.weight"), gguf_name("lm_head.weight"), gguf_name("conv1.weight")
    ('blk.3.attn_q.weight', 'output.weight', None)
    """
    module, _, kind = parameter.rpartition(".")
    if kind not in ("weight", "bias"):
        return None
    if module in _TOP:
        return f"{_TOP[module]}.{kind}"
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
    if match is None or match[2] not in _BLOCK:
        return None
    return f"blk.{match[1]}.{_BLOCK[match[2]]}.{kind}"


def rotated_heads(name: str, config: Any) -> int | None:
    """Return how many heads the rows of a tensor hold where llama.cpp orders them otherwise, None elsewhere."""
    if ".attn_q." in name:
        return int(config.num_attention_heads)
    return int(config.num_key_value_heads) if ".attn_k." in name else None


def interleave(rows: int, heads: int) -> Tensor:
    """Return llama.cpp's order of the rows of a query or key projection.

    >>> interleave(8, 2).tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    return torch.arange(rows).reshape(heads, 2, -1).transpose(1, 2).reshape(-1)


def check_config(config: Any) -> None:
    """Refuse models whose computation the file's metadata could not say.

    Raises:
        ExportError: it is no Llama or Mistral, or its rotary embedding is scaled.
    """
    kind = getattr(config, "model_type", None)
    if kind not in MODELS:
        raise ExportError(f"this is {_what(kind)}; GGUF files are written for {' and '.join(MODELS)} models only")
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        raise ExportError(f"the rotary embedding is scaled ('{rope['rope_type']}'); only the default one is written")


def _what(kind: str | None) -> str:
    return f"a {kind} model" if kind else "no model of transformers"


def add_metadata(writer: Any, config: Any, file_type: int, quantization_version: int) -> None:
    """Write what llama.cpp must know of the model."""
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    settings: list[tuple[Callable[[Any], None], Any]] = [
        (writer.add_name, config.model_type),
        (writer.add_block_count, config.num_hidden_layers),
        (writer.add_context_length, config.max_position_embeddings),
        (writer.add_embedding_length, config.hidden_size),
        (writer.add_feed_forward_length, config.intermediate_size),
        (writer.add_head_count, heads),
        (writer.add_head_count_kv, config.num_key_value_heads),
        (writer.add_key_length, size),
        (writer.add_value_length, size),
        (writer.add_layer_norm_rms_eps, config.rms_norm_eps),
        (writer.add_rope_dimension_count, size),
        (writer.add_rope_freq_base, _rope_base(config)),
        (writer.add_vocab_size, config.vocab_size),
        (writer.add_file_type, file_type),
        (writer.add_quantization_version, quantization_version),
    ]
    for setting, value in settings:
        setting(value)


def _rope_base(config: Any) -> float:
    rope = getattr(config, "rope_parameters", None) or {}
    return float(rope.get("rope_theta") or getattr(config, "rope_theta", None) or 10000.0)
