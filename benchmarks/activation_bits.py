"""ResNet-20 on CIFAR-10: activation bits chosen by the plan against the same bits everywhere, at equal bit-operations.

    python benchmarks/activation_bits.py --weights cifar10_resnet20.safetensors

needs CIFAR-10 ($GEOQUANT_DATA_DIR or the Hub). For each uniform plan (W4A4, W3A3: every layer, first and last included,
inputs of all layers) the exact solver gets its bit-operations and its bytes as limits, and chooses the weights' grids,
the activations' grids, or both. Damages: KL to the float model, one layer or input at a time, on training images
without labels. Deployed by GPTQ with corrected norms on the same images. Nothing was tuned on test images; the KL of
the table is that on them. ``--quick`` runs everything on few images, to see that all works.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common import parser, write_results
from geoquant.cli.inputs import Normalize, read_batches, read_model
from geoquant.evaluation import evaluate, logits
from geoquant.plan import Budget, Plan, allocate, uniform_plan
from geoquant.progress import shown
from geoquant.quantize import quantize
from geoquant.sensitivity import Profile, profile

MODEL = "geoquant.models.zoo:resnet20_cifar10"
BUDGETS = (4, 3)
INPUTS = tuple(f"int{bits}:affine" for bits in range(2, 9))
LAYERS = "re:[^:]*"


@dataclass(frozen=True)
class Row:
    """One plan, and what it was made by."""

    budget: str
    label: str
    plan: Plan


def plans(measured: Profile, bits: int) -> list[Row]:
    """Return the uniform plan, and plans of at most its bit-operations and bytes."""
    weights, entering = f"int{bits}:mse-signed", f"int{bits}:affine"
    uniform = uniform_plan(measured.inventory, weights, activations=entering)
    counted = allocate(measured, Budget(bit_operations=1e15), fixed={"re:.*": weights}, activations={LAYERS: entering})
    assert counted.names == uniform.names
    assert counted.bit_operations is not None
    budget = Budget(bit_operations=counted.bit_operations, bytes=counted.bytes)
    eight = {LAYERS: entering, measured.inventory.names[0]: "int8:affine"}
    ends = allocate(measured, Budget(bit_operations=1e15), fixed={"re:.*": weights}, activations=eight)
    chosen = {
        "uniform": counted,
        "uniform, input of the first layer at 8 bits": ends,
        "weights chosen": allocate(measured, budget, activations={LAYERS: entering}),
        "activations chosen": allocate(measured, budget, fixed={"re:.*": weights}),
        "both chosen": allocate(measured, budget),
    }
    return [Row(f"W{bits}A{bits}", label, plan) for label, plan in chosen.items()]


def read_arguments() -> argparse.Namespace:
    made = parser(__doc__ or "", "activation_bits")
    made.add_argument("--weights", type=Path, required=True)
    made.add_argument("--images", type=int, default=256, help="calibration images")
    made.add_argument("--test-images", type=int, default=None, help="fewer test images, for a quick look")
    made.add_argument("--seed", type=int, default=0, help="of the calibration set")
    made.add_argument("--quick", action="store_true", help="few images and one budget")
    arguments = made.parse_args()
    if arguments.quick:
        arguments.images, arguments.test_images = 32, 100
    return arguments


def deployed(row: Row, model: torch.nn.Module, calibration: Any, test: Any, wanted: Any) -> dict[str, object]:
    """Quantize by the plan and look at the test images."""
    net = quantize(model, row.plan, calibration, rounding="gptq")
    result = evaluate(net, test, reference=wanted)
    assert result.kl is not None
    assert row.plan.bit_operations is not None
    return {
        "budget": row.budget,
        "plan": row.label,
        "giga_bit_operations": round(row.plan.bit_operations / 1e9, 4),
        "bytes": row.plan.bytes,
        "average_bits": round(row.plan.average_bits, 3),
        "average_activation_bits": round(row.plan.average_activation_bits or 0.0, 3),
        "accuracy": round(100 * result.accuracy.value, 2),
        "stderr": round(100 * result.accuracy.stderr, 2),
        "kl": round(result.kl.value, 4),
    }


def main() -> None:
    arguments = read_arguments()
    torch.set_num_threads(arguments.threads)
    model = read_model(MODEL, arguments.weights)
    size = min(128, arguments.images)
    calibration = read_batches(
        "cifar10", "train", Normalize.imagenet, arguments.weights, size, arguments.images, arguments.seed
    )
    test = read_batches("cifar10", "test", Normalize.imagenet, arguments.weights, 250, arguments.test_images)
    rows: list[dict[str, object]] = []
    with shown():
        start = time.process_time()
        measured = profile(model, calibration, predictors=["one_layer_kl"], activations=INPUTS)
        chosen = [row for bits in BUDGETS[: 1 if arguments.quick else None] for row in plans(measured, bits)]
        seconds = time.process_time() - start
        wanted = logits(model, test)
        for row in chosen:
            rows.append(deployed(row, model, calibration, test, wanted))
            print(rows[-1], flush=True)
            found = {"profile_seconds_of_processor": round(seconds, 1), "profile_forwards": round(measured.cost, 1)}
            write_results(arguments, {**found, "rows": rows})  # what is measured is kept


if __name__ == "__main__":
    main()
