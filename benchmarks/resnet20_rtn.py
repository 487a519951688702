"""ResNet-20 on CIFAR-10, weights only, round to nearest: every predictor, every solver, every uniform grid.

    python benchmarks/resnet20_rtn.py --weights cifar10_resnet20.safetensors

needs CIFAR-10 ($GEOQUANT_DATA_DIR or the Hub). Calibration: 512 training images without labels (HAWQ-V2 takes
the labels); figures: all 10,000 test images. Predictors that look at data run on three calibration sets.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from pathlib import Path

import torch

from common import parser, write_results
from geoquant.allocation import SOLVERS
from geoquant.cli.inputs import Normalize, read_batches, read_model
from geoquant.plan import Budget, Plan, allocate, uniform_plan
from geoquant.progress import shown
from geoquant.report import Point, measure_point, sweep
from geoquant.sensitivity import Profile, profile

BUDGETS = (2.5, 3.0, 3.5, 4.0, 5.0, 8.0)
FAMILIES = {  # name of the family → how a width is written on it
    "full-range, max-abs": "int{}:maxabs",
    "full-range, MSE": "int{}",
    "full-range, MSE, signed scale": "int{}:mse-signed",
    "narrow, max-abs": "int{}:narrow:maxabs",
    "narrow, MSE": "int{}:narrow",
    "affine, max-abs": "int{}:affine:maxabs",
    "affine, MSE": "int{}:affine",
}
WIDTHS = (2, 3, 4, 5, 6, 7, 8)
UNIFORM_WIDTHS = (2, 3, 4, 5, 8)
PREDICTORS = ("weight_error", "one_layer_kl", "hawq_v2", "condition_number")
LOOK_AT_DATA = ("one_layer_kl", "hawq_v2")
MODEL = "geoquant.models.zoo:resnet20_cifar10"


def uniform_plans(model: torch.nn.Module) -> dict[tuple[str, str], Plan]:
    """Return uniform plans of every family at every width."""
    return {
        (f"uniform, {family}", f"{bits} bits"): uniform_plan(model, pattern.format(bits))
        for family, pattern in FAMILIES.items()
        for bits in UNIFORM_WIDTHS
    }


def guided_plans(measured: Profile, family: str, solvers: list[str]) -> dict[tuple[str, str], Plan]:
    """Return a plan per predictor, solver and budget."""
    return {
        (f"{table.predictor} + {solver}, {family}", f"{budget:g} bits"): allocate(
            measured, Budget(average_bits=budget), predictor=table.predictor, solver=solver
        )
        for table in measured.tables
        for solver in solvers
        for budget in BUDGETS
    }


def rows(points: list[tuple[int, Point]]) -> list[dict[str, object]]:
    """Group points by method and label; accuracy as mean and spread over calibration seeds."""
    grouped: dict[tuple[str, str], list[Point]] = defaultdict(list)
    for _, point in points:
        grouped[(point.method, point.label)].append(point)
    table = []
    for (method, label), members in grouped.items():
        accuracies = [100 * point.accuracy.value for point in members]
        table.append(
            {
                "method": method,
                "label": label,
                "average_bits": statistics.mean(point.average_bits for point in members),
                "bytes": statistics.mean(point.bytes for point in members),
                "accuracy": round(statistics.mean(accuracies), 2),
                "spread": round(statistics.stdev(accuracies), 2) if len(accuracies) > 1 else 0.0,
                "kl": round(statistics.mean(point.kl.value for point in members), 5),
                "seeds": len(members),
            }
        )
    return table


def main() -> None:
    made = parser(__doc__ or "", "resnet20_rtn")
    made.add_argument("--weights", type=Path, required=True)
    made.add_argument("--seeds", type=int, default=3, help="calibration sets")
    made.add_argument("--images", type=int, default=512, help="calibration images")
    made.add_argument("--test-images", type=int, default=None, help="fewer test images, for a quick look")
    arguments = made.parse_args()
    torch.set_num_threads(arguments.threads)
    model = read_model(MODEL, arguments.weights)
    test = read_batches("cifar10", "test", Normalize.imagenet, arguments.weights, 250, arguments.test_images)
    float_point = measure_point(model, None, test, "float", "float32")
    print(f"float {100 * float_point.accuracy.value:.2f} %", flush=True)
    points: list[tuple[int, Point]] = [(0, float_point)]
    costs: dict[str, list[float]] = defaultdict(list)
    with shown():
        points += [(0, point) for point in sweep(model, uniform_plans(model), test)]
        print(f"{len(points) - 1} uniform plans done", flush=True)
        for seed in range(arguments.seeds):
            calibration = read_batches(
                "cifar10", "train", Normalize.imagenet, arguments.weights, 128, arguments.images, seed
            )
            # Scores that need no data are the same for every calibration set.
            predictors = PREDICTORS if seed == 0 else LOOK_AT_DATA
            measured = profile(model, calibration, grids=[f"int{b}" for b in WIDTHS], predictors=predictors, seed=seed)
            for table, seconds in zip(measured.tables, measured.seconds, strict=True):
                costs[table.predictor].append(round(seconds, 2))
            solvers = [name for name in SOLVERS if name != "uniform"] if seed == 0 else ["milp"]
            plans = guided_plans(measured, "full-range, MSE", solvers)
            for family in ("full-range, MSE, signed scale", "affine, MSE"):
                grids = [FAMILIES[family].format(bits) for bits in WIDTHS]
                other = profile(
                    model,
                    calibration,
                    grids=grids,
                    predictors=["one_layer_kl", "weight_error"][: 1 + (seed == 0)],
                    seed=seed,
                )
                plans |= guided_plans(other, family, ["milp"])
            points += [(seed, point) for point in sweep(model, plans, test)]
            print(f"calibration set {seed}: {len(plans)} plans done", flush=True)
            write_results(arguments, {"rows": rows(points), "seconds": costs})  # what is measured is kept
    for row in rows(points):
        name = f"{row['method']:55s} {row['label']:>9s} {row['average_bits']:6.3f}"
        print(f"{name} {row['accuracy']:6.2f} ± {row['spread']}")


if __name__ == "__main__":
    main()
