r"""What transforms are worth: a small Llama at 4, 3 and 2 bits and with rounded activations, a ResNet-20 at W4A4.

    python benchmarks/transforms.py llama --checkpoint stories260K --text tinystories/v2_train_head.txt \
        --held-out tinystories/v1_valid_head.txt
    python benchmarks/transforms.py resnet --weights cifar10_resnet20.safetensors

The options default to these names in $GEOQUANT_WEIGHTS_DIR and $GEOQUANT_DATA_DIR; the ResNet needs CIFAR-10.

Llama: embedding and head at int8, every other layer on the grid of the column. Rotating the residual stream needs a
head with its own weight, so all rows are of the untied model. Calibration text is of the training release,
evaluation text of the validation release; loss in nats per token. ResNet-20: inputs of all layers on int4, of the
first on int8; all weights on int4 with a scale per channel or per tensor; GPTQ, norms corrected. Calibration draws
differ by seed; figures are means, with the standard deviation beside where there are several.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common import RESULTS, parser, write_results
from geoquant.cli.inputs import Normalize, read_batches, read_model
from geoquant.evaluation import evaluate
from geoquant.models import fold_batch_norm
from geoquant.plan import Plan, uniform_plan
from geoquant.progress import shown
from geoquant.quantize import quantize
from geoquant.transforms import transform, untie_

RESNET = "geoquant.models.zoo:resnet20_cifar10"
ENDS = {"re:.*(embed_tokens|lm_head)": "int8"}
WEIGHTS = ("int3", "int2", "int4")
ON_WEIGHTS: dict[str, tuple[str, ...]] = {"none": (), "absorb": ("absorb",), "awq": ("awq",), "hadamard": ("hadamard",)}
BOTH = {"W8A8": ("int8", "int8"), "W4A8": ("int4", "int8")}
ON_BOTH: dict[str, tuple[str, ...]] = {"none": (), "smoothquant": ("smoothquant",), "hadamard": ("hadamard",)}


def place(variable: str, *parts: str) -> Path | None:
    """Return where a file usually lies, or None."""
    return Path(os.environ[variable], *parts) if variable in os.environ else None


@dataclass(frozen=True)
class Case:
    """A plan, what rewrites the model before it is rounded, and how it is rounded."""

    grid: str
    transforms: str
    plan: Plan
    names: tuple[str, ...]
    roundings: tuple[str, ...]


def llama_cases(model: nn.Module, quick: bool) -> Iterator[Case]:
    """Yield every case of the Llama."""
    for grid in WEIGHTS[: 1 if quick else None]:
        plan = uniform_plan(model, grid, ENDS)
        for name, names in ON_WEIGHTS.items():
            yield Case(grid, name, plan, names, ("nearest", "gptq"))
    for label, (weights, inputs) in list(BOTH.items())[: 1 if quick else None]:
        plan = uniform_plan(model, weights, ENDS, activations={"re:.*": inputs, "re:.*embed_tokens": "none"})
        for name, names in ON_BOTH.items():
            yield Case(label, name, plan, names, ("gptq",))


def measure_llama(arguments: argparse.Namespace) -> None:
    """Measure every case of the Llama; write what is there after each."""
    model = read_model(str(arguments.checkpoint), None)
    held_out = read_batches(str(arguments.held_out), "test", None, None, 8, arguments.windows, model=model)
    untie_(model)
    exact = evaluate(model, held_out)
    print("llama float", exact, flush=True)
    found: dict[tuple[str, ...], tuple[int, list[float]]] = {}
    result: dict[str, Any] = {"float": round(exact.cross_entropy.value, 4), "tokens": exact.predictions}
    for seed in range(arguments.seeds):
        batches = read_batches(str(arguments.text), "train", None, None, 8, arguments.rows, seed, model, 256)
        for case in llama_cases(model, arguments.quick):
            base = transform(model, case.names, batches, case.plan, seed=seed)
            for rounding in case.roundings:
                done = quantize(base, case.plan, batches, rounding=rounding, norms="none", seed=seed)
                loss = evaluate(done, held_out).cross_entropy.value
                key = (case.grid, rounding, case.transforms)
                found.setdefault(key, (case.plan.bytes, []))[1].append(loss)
                print(seed, *key, round(loss, 4), sep="; ", flush=True)
                write_rows(arguments, result, ("grid", "rounding", "transforms"), "loss", found)


def measure_resnet(arguments: argparse.Namespace) -> None:
    """Measure the ResNet-20 with and without equalisation, batch norms as they are and folded."""
    plain = read_model(RESNET, arguments.weights)
    test = read_batches("cifar10", "test", Normalize.imagenet, arguments.weights, 250, arguments.test_images)
    nets = {"as they are": plain, "folded": fold_batch_norm(plain)}
    found: dict[tuple[str, ...], tuple[int, list[float]]] = {}
    result: dict[str, Any] = {"float": round(100 * evaluate(plain, test).accuracy.value, 2)}
    for seed in range(arguments.seeds):
        batches = read_batches("cifar10", "train", Normalize.imagenet, arguments.weights, 128, arguments.images, seed)
        for norms, net in nets.items():
            for grid in ("int4", "int4:tensor")[: 1 if arguments.quick else None]:
                plan = uniform_plan(net, grid, activations={"re:[^:]*": "int4:affine", "conv1": "int8:affine"})
                for name in ("none", "equalize"):
                    done = quantize(
                        net, plan, batches, rounding="gptq", transforms=() if name == "none" else name, seed=seed
                    )
                    accuracy = 100 * evaluate(done, test).accuracy.value
                    found.setdefault((norms, grid, name), (plan.bytes, []))[1].append(accuracy)
                    print(seed, norms, grid, name, round(accuracy, 2), sep="; ", flush=True)
                    write_rows(arguments, result, ("norms", "grid", "transforms"), "accuracy", found)


def write_rows(
    arguments: argparse.Namespace,
    result: dict[str, Any],
    names: tuple[str, ...],
    value: str,
    found: dict[tuple[str, ...], tuple[int, list[float]]],
) -> None:
    """Write all rows measured so far."""
    rows = [
        {**dict(zip(names, key, strict=True)), "bytes": size, **summary(value, values)}
        for key, (size, values) in found.items()
    ]
    write_results(arguments, {**result, "rows": rows})


def summary(name: str, values: list[float]) -> dict[str, float]:
    """Return mean and standard deviation over seeds."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return {name: round(statistics.mean(values), 4), "spread": round(spread, 4), "seeds": len(values)}


def main() -> None:
    made = parser(__doc__ or "", "transforms")
    made.add_argument("part", choices=("llama", "resnet"))
    made.add_argument("--checkpoint", type=Path, default=place("GEOQUANT_WEIGHTS_DIR", "stories260K"))
    made.add_argument("--text", type=Path, default=place("GEOQUANT_DATA_DIR", "tinystories", "v2_train_head.txt"))
    made.add_argument("--held-out", type=Path, default=place("GEOQUANT_DATA_DIR", "tinystories", "v1_valid_head.txt"))
    made.add_argument("--weights", type=Path, default=place("GEOQUANT_WEIGHTS_DIR", "cifar10_resnet20.safetensors"))
    made.add_argument("--seeds", type=int, default=3, help="calibration sets")
    made.add_argument("--rows", type=int, default=16, help="calibration windows of 256 tokens")
    made.add_argument("--windows", type=int, default=8, help="evaluation windows of 512 tokens")
    made.add_argument("--images", type=int, default=256, help="calibration images")
    made.add_argument("--test-images", type=int, default=None, help="fewer test images, for a quick look")
    made.add_argument("--quick", action="store_true", help="one grid, one seed and little data, to see that all works")
    arguments = made.parse_args()
    if arguments.output == RESULTS / "transforms.json":
        arguments.output = RESULTS / f"transforms_{arguments.part}.json"
    if arguments.quick:
        arguments.seeds, arguments.rows, arguments.windows, arguments.images = 1, 8, 4, 64
        arguments.test_images = 250
    torch.set_num_threads(arguments.threads)
    with shown():
        {"llama": measure_llama, "resnet": measure_resnet}[arguments.part](arguments)


if __name__ == "__main__":
    main()
