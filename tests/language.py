"""Tiny random language models as Hugging Face folders, with a tokenizer of bytes, that several rooms' tests share."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

TEXT = "".join(
    f"The {a} {b} saw {c} suns and a door. " for a in ("red", "blue") for b in ("fox", "owl") for c in range(9)
)


def byte_tokenizer(bos: bool = True):
    """A tokenizer whose tokens are the 256 bytes, and ``<s>``."""
    import tokenizers
    import transformers

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: place for place, symbol in enumerate(alphabet)} | {"<s>": 256}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **({"bos_token": "<s>"} if bos else {}))


def tiny(kind: str = "llama", tied: bool = True, layers: int = 2, seed: int = 0) -> nn.Module:
    """A random llama, gpt2 or bert of a few thousand weights, lively enough that rounding moves its predictions."""
    import transformers

    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": layers, "num_attention_heads": 2}
    if kind == "llama":
        config = transformers.LlamaConfig(
            vocab_size=257,
            num_key_value_heads=1,
            max_position_embeddings=32,
            tie_word_embeddings=tied,
            bos_token_id=256,
            eos_token_id=256,
            **sizes,
        )
        model = transformers.LlamaForCausalLM(config)
    elif kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=257, n_positions=32, n_embd=16, n_layer=layers, n_head=2, bos_token_id=256, eos_token_id=256
        )
        model = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.BertConfig(vocab_size=257, max_position_embeddings=32, num_labels=3, **sizes)
        model = transformers.BertForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    return model.eval()


def write_folder(folder: Path, kind: str = "llama", tied: bool = True, shards: str | None = None) -> Path:
    """Save a tiny model and its tokenizer; `shards` such as ``"8KB"`` cuts the weights into files."""
    tiny(kind, tied).save_pretrained(folder, **({"max_shard_size": shards} if shards else {}))
    byte_tokenizer().save_pretrained(folder)
    return folder


def token_batches(count: int = 3, size: int = 2, length: int = 12, seed: int = 1) -> list[dict[str, torch.Tensor]]:
    """Random tokens."""
    source = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(0, 257, (size, length), generator=source)} for _ in range(count)]
