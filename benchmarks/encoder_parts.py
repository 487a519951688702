"""Query, key, value and output projections beside feed-forward layers, in encoders that were trained here.

    python benchmarks/encoder_parts.py

Two encoders, ours and a BERT of transformers, read the embedded digits pixel by pixel (64 tokens, 17 grey levels) and
name them. For each kind of layer: what rounding one layer alone does (nats, mean over layers of the kind, and per
million weights), and with --geometry traces, norms and condition numbers as in ``architectures.py --trained``. The
source's claim, that attention needs more bits than the feed-forward (docs/sources.md, "Curvature-Guided Transformer
Quantization"), is about these numbers.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import geoquant as gq
from architectures import trained
from common import parser, write_results
from geoquant.data import digits
from geoquant.models import find_sites, logits_of
from geoquant.models.zoo.transformer import TransformerClassifier
from geoquant.rates import one_cycle

GRIDS = ("int2:mse-signed", "int3:mse-signed", "int4:mse-signed")
WIDTH, HIDDEN, HEADS, DEPTH, TOKENS, LEVELS, CLASSES = 64, 128, 4, 3, 64, 17, 10
PARTS = {
    "q": "query",
    "query": "query",
    "k": "key",
    "key": "key",
    "v": "value",
    "value": "value",
    "o": "attention output",
    "attention.output.dense": "attention output",
    "up": "feed-forward up",
    "intermediate.dense": "feed-forward up",
    "down": "feed-forward down",
    "output.dense": "feed-forward down",
}


def part(name: str) -> str:
    """Return which kind of layer a site is; the longest ending that is known decides."""
    found = max((ending for ending in PARTS if name.endswith(f".{ending}")), key=len, default=None)
    return "other" if found is None else PARTS[found]


def bert() -> nn.Module:
    """Return a small BERT with random weights."""
    import transformers

    config = transformers.BertConfig(
        vocab_size=LEVELS,
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        max_position_embeddings=TOKENS,
        num_labels=CLASSES,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.BertForSequenceClassification(config)


ENCODERS = {
    "encoder": lambda: TransformerClassifier(LEVELS, WIDTH, DEPTH, HEADS, HIDDEN, TOKENS, CLASSES),
    "bert": bert,
}


def tokens(split: str) -> tuple[Tensor, Tensor]:
    """Return (images, 64) grey levels and labels."""
    images = digits(split)
    levels = torch.tensor(images.images).reshape(len(images), TOKENS).double().mul(16 / 255).round().long()
    return levels, torch.tensor(images.labels)


def train(model: nn.Module, epochs: int, rate: float) -> None:
    """Minimise cross-entropy by AdamW in batches of 64, the rate in one cycle: BERT wants a warm-up."""
    inputs, labels = tokens("train")
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    total = epochs * -(-len(inputs) // 64)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: one_cycle(step, total))
    model.train()
    for epoch in range(epochs):
        for chosen in torch.randperm(len(inputs)).split(64):
            loss = F.cross_entropy(logits_of(model(input_ids=inputs[chosen])), labels[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        if epoch % 5 == 0 or epoch == epochs - 1:
            print(f"  epoch {epoch}: {float(loss.detach()):.4f}", flush=True)
    model.eval()


def batches(split: str, limit: int) -> list[dict[str, Tensor]]:
    """Return batches of keyword arguments."""
    inputs, labels = (each[:limit] for each in tokens(split))
    return [{"input_ids": x, "labels": y} for x, y in zip(inputs.split(64), labels.split(64), strict=True)]


def rounding_damage(model: nn.Module, calibration: list[dict[str, Tensor]], seed: int) -> list[dict[str, Any]]:
    """Round each layer alone; gather nats by kind of layer."""
    found = gq.profile(model, calibration, grids=GRIDS, predictors=["one_layer_kl"], seed=seed)
    groups: dict[str, list[tuple[int, tuple[float, ...]]]] = defaultdict(list)
    for site in found.inventory.sites:
        groups[part(site.name)].append((site.weights, found.table().row(site.name)))
    made = []
    for name, sites in groups.items():
        row: dict[str, Any] = {"part": name, "layers": len(sites), "weights": sum(weights for weights, _ in sites)}
        for column, grid in enumerate(GRIDS):
            damages = [damage[column] for _, damage in sites]
            row[grid.partition(":")[0]] = statistics.mean(damages)
            row[f"{grid.partition(':')[0]} per million weights"] = 1e6 * sum(damages) / row["weights"]
        made.append(row)
    return made


def main() -> None:
    made = parser(__doc__ or "", "encoder_parts")
    made.add_argument("--epochs", type=int, default=30)
    made.add_argument("--rate", type=float, default=1e-3)
    made.add_argument("--images", type=int, default=256, help="calibration images")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--only", nargs="+", choices=list(ENCODERS), default=list(ENCODERS))
    made.add_argument("--geometry", action="store_true", help="traces, norms and condition numbers too")
    arguments = made.parse_args()
    torch.set_num_threads(arguments.threads)
    results = {}
    for name in arguments.only:
        torch.manual_seed(arguments.seed)
        model = ENCODERS[name]()
        print(name, f"{sum(site.weights for site in find_sites(model)):,} weights", flush=True)
        train(model, arguments.epochs, arguments.rate)
        calibration = batches("train", arguments.images)
        accuracy = gq.evaluate(model, batches("test", 10**6)).accuracy.value
        result: dict[str, Any] = {
            "test_accuracy": accuracy,
            "damage": rounding_damage(model, calibration, arguments.seed),
        }
        if arguments.geometry:
            result["geometry"] = trained(model, calibration, part, arguments.seed)
        results[name] = result
        print(f"  test accuracy {accuracy:.3f}")
        for line in result["damage"]:
            print("  ", line)
    write_results(arguments, results)


if __name__ == "__main__":
    main()
