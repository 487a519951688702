"""ResNet-20 on CIFAR-10, weights only: every rounding and refinement, at uniform widths and at budgets.

    python benchmarks/resnet20_ptq.py --weights cifar10_resnet20.safetensors

needs CIFAR-10 ($GEOQUANT_DATA_DIR or the Hub). Plans: uniform widths, and the exact solver's on `weight_error` at
inclusive average bits, as they come and with the first and last layer at 8 bits; W4A4 and the like put the inputs of
all layers on a grid too. Calibration: training images without labels, another set for each seed; figures: all 10,000
test images. Settings were tuned by the KL divergence to the float model on training images outside the
calibration set, never on test images. ``--quick`` runs the cheap methods on few images, to see that all works.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common import parser, write_results
from geoquant.cli.inputs import Normalize, read_batches, read_model
from geoquant.evaluation import Evaluation, evaluate, logits
from geoquant.plan import Budget, Plan, allocate, uniform_plan
from geoquant.progress import shown
from geoquant.quantize import BlockTuning, NetworkTuning, quantize
from geoquant.rounding import ROUNDINGS
from geoquant.sensitivity import DEFAULT_GRIDS, profile

MODEL = "geoquant.models.zoo:resnet20_cifar10"
WIDTHS = (2, 3, 4)
BUDGETS = (2.0, 2.5, 3.0, 4.0)
ACTIVATED = ((8, 8), (4, 4), (2, 8))  # bits of weights and of inputs
EXTRA = ("binary", "ternary")  # with its scales, a 2-bit grid takes more than 2 bits


def methods(quick: bool) -> dict[str, dict[str, Any]]:
    """Return the settings of `quantize` for each row of the table."""
    made: dict[str, dict[str, Any]] = {"nearest, norms as they are": {"rounding": "nearest", "norms": "none"}}
    for name in ROUNDINGS:
        made[f"{name}, norms corrected"] = {"rounding": name, "norms": "relative"}
    made["gptq, norms as they are"] = {"rounding": "gptq", "norms": "none"}
    blocks, network = (BlockTuning(steps=2), NetworkTuning(steps=2)) if quick else ("blocks", "network")
    made["gptq, norms corrected, blocks learned"] = {"rounding": "gptq", "refine": blocks}
    made["gptq, norms corrected, network learned"] = {"rounding": "gptq", "refine": network}
    return made


def plans(model: torch.nn.Module, calibration: Any, quick: bool) -> dict[str, Plan]:
    """Return uniform plans, plans of the exact solver, and uniform ones with activations."""
    widths, budgets = (WIDTHS[:1], BUDGETS[:1]) if quick else (WIDTHS, BUDGETS)
    chosen = {f"uniform int{bits}": uniform_plan(model, f"int{bits}:mse-signed") for bits in widths}
    measured = profile(model, calibration, predictors=["weight_error"], grids=(*EXTRA, *DEFAULT_GRIDS))
    names = measured.inventory.names
    ends = dict.fromkeys((names[0], names[-1]), "int8:mse-signed")
    for budget in budgets:
        menu = (*EXTRA, *DEFAULT_GRIDS) if budget <= 2 else DEFAULT_GRIDS
        for note, fixed in (("", {}), (", ends at 8", ends)):
            plan = allocate(measured, Budget(average_bits=budget), menu=menu, fixed=fixed)
            chosen[f"weight_error, {budget:g} bits{note}"] = plan
    for weight, activation in () if quick else ACTIVATED:
        grid = f"int{weight}:mse-signed"
        chosen[f"W{weight}A{activation}"] = uniform_plan(model, grid, activations=f"int{activation}:affine")
    return chosen


@dataclass(frozen=True)
class Row:
    """One method on one plan, and how well it does."""

    method: str
    label: str
    plan: Plan
    result: Evaluation


def rows(points: list[tuple[Row, float]]) -> list[dict[str, object]]:
    """Group points by method and plan; accuracy and seconds as means over calibration sets, with the spread."""
    grouped: dict[tuple[str, str], list[tuple[Row, float]]] = defaultdict(list)
    for point, seconds in points:
        grouped[(point.method, point.label)].append((point, seconds))
    table = []
    for (method, label), members in grouped.items():
        accuracies = [100 * point.result.accuracy.value for point, _ in members]
        table.append(
            {
                "method": method,
                "label": label,
                "average_bits": round(members[0][0].plan.average_bits, 4),
                "bytes": members[0][0].plan.bytes,
                "accuracy": round(statistics.mean(accuracies), 2),
                "spread": round(statistics.stdev(accuracies), 2) if len(accuracies) > 1 else 0.0,
                "kl": round(statistics.mean(point.result.kl.value for point, _ in members), 5),
                "seconds": round(statistics.mean(seconds for _, seconds in members), 1),
                "seeds": len(members),
            }
        )
    return table


def read_arguments() -> argparse.Namespace:
    made = parser(__doc__ or "", "resnet20_ptq")
    made.add_argument("--weights", type=Path, required=True)
    made.add_argument("--seeds", type=int, default=3, help="calibration sets")
    made.add_argument("--images", type=int, default=1024, help="calibration images")
    made.add_argument("--test-images", type=int, default=None, help="fewer test images, for a quick look")
    made.add_argument("--only", default="", help="only methods in whose name this regular expression is found")
    made.add_argument("--plans", default="", help="only plans in whose name this regular expression is found")
    made.add_argument("--quick", action="store_true", help="few images, plans, steps and one seed")
    arguments = made.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.images, arguments.test_images = 1, 64, 250
    return arguments


def main() -> None:
    arguments = read_arguments()
    torch.set_num_threads(arguments.threads)
    model = read_model(MODEL, arguments.weights)
    test = read_batches("cifar10", "test", Normalize.imagenet, arguments.weights, 250, arguments.test_images)
    wanted = logits(model, test)
    float_row = Row("float", "float32", uniform_plan(model, "fp32"), evaluate(model, test, reference=wanted))
    points = [(float_row, 0.0)]
    chosen = {name: how for name, how in methods(arguments.quick).items() if re.search(arguments.only, name)}
    with shown():
        for seed in range(arguments.seeds):
            size = min(128, arguments.images)
            calibration = read_batches(
                "cifar10", "train", Normalize.imagenet, arguments.weights, size, arguments.images, seed
            )
            for label, plan in plans(model, calibration, arguments.quick).items():
                if not re.search(arguments.plans, label):
                    continue
                for method, how in chosen.items():
                    start = time.perf_counter()
                    net = quantize(model, plan, calibration, seed=seed, **how)
                    seconds = time.perf_counter() - start
                    points.append((Row(method, label, plan, evaluate(net, test, reference=wanted)), seconds))
                    row = rows(points[-1:])[0]
                    print(f"{seed} {label:40s} {method:45s} {row['accuracy']:6.2f} {row['seconds']:6.1f} s", flush=True)
                write_results(arguments, {"rows": rows(points)})  # what is measured is kept


if __name__ == "__main__":
    main()
