r"""Train a byte-level GPT of 2.3 million parameters on Tiny Shakespeare and save it as a Hugging Face folder.

    python benchmarks/train_gpt.py --folder gpt
    python benchmarks/stories260k.py --checkpoint gpt --train-text tinyshakespeare --test-text tinyshakespeare \
        --window 128 --output benchmarks/results/gpt.json

needs Tiny Shakespeare ($GEOQUANT_DATA_DIR). A Llama of 5 layers and width 192, tokens are bytes; the first nine tenths
of the text train it, the last tenth is its test text. About 15 minutes on two cores; a run that was stopped starts
again.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import geoquant as gq
from common import parser, write_results
from geoquant.data import evaluation_batches, load_text, tokenize

VOCABULARY, BOS = 257, 256
WINDOW = 128


def byte_tokenizer() -> Any:
    """Return a tokenizer whose tokens are the 256 bytes and ``<s>``."""
    import tokenizers
    import transformers

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: place for place, symbol in enumerate(alphabet)} | {"<s>": BOS}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>")


def new_model(width: int, layers: int) -> Any:
    """Return a Llama with random weights."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=8 * width // 3 // 32 * 32,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
        max_position_embeddings=2 * WINDOW,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=BOS,
        use_cache=False,
    )
    return transformers.LlamaForCausalLM(config)


def train(model: Any, stream: torch.Tensor, steps: int, batch: int, rate: float) -> None:
    """Minimise cross-entropy by AdamW; the rate rises for a twentieth of the steps, then falls as a half cosine."""
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))
    start = time.perf_counter()
    model.train()
    for step in range(steps):
        share = min(1.0, (step + 1) / (0.05 * steps)) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate * share
        places = torch.randint(0, len(stream) - WINDOW - 1, (batch,))
        windows = torch.stack([stream[place : place + WINDOW + 1] for place in places])
        logits = model(input_ids=windows[:, :-1]).logits
        loss = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % max(1, steps // 20) == 0 or step == steps - 1:
            print(f"step {step}: {float(loss.detach()):.4f} nats, {time.perf_counter() - start:.0f} s", flush=True)
    model.eval()


def main() -> None:
    made = parser(__doc__ or "", "train_gpt")
    made.add_argument("--folder", type=Path, required=True, help="where the model goes")
    made.add_argument("--steps", type=int, default=1600)
    made.add_argument("--batch", type=int, default=16, help=f"windows of {WINDOW} bytes a step")
    made.add_argument("--width", type=int, default=192)
    made.add_argument("--layers", type=int, default=5)
    made.add_argument("--rate", type=float, default=2e-3)
    made.add_argument("--seed", type=int, default=0)
    arguments = made.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    tokenizer = byte_tokenizer()
    model = new_model(arguments.width, arguments.layers)
    start = time.perf_counter()
    train(
        model,
        tokenize(load_text("tinyshakespeare", "train").documents, tokenizer),
        arguments.steps,
        arguments.batch,
        arguments.rate,
    )
    seconds = time.perf_counter() - start
    model.save_pretrained(arguments.folder)
    tokenizer.save_pretrained(arguments.folder)
    batches = evaluation_batches(load_text("tinyshakespeare", "test"), tokenizer, WINDOW, batch_size=32)
    found = gq.evaluate(model, batches)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{count:,} parameters, {seconds:.0f} s; test: {found}, perplexity {found.perplexity:.3f} per byte")
    figures = {"parameters": count, "seconds": round(seconds, 1), "test_loss": found.cross_entropy.value}
    write_results(arguments, {**figures, "predictions": found.predictions})


if __name__ == "__main__":
    main()
