"""Condition number and size tables of a ResNet-18 and a 6-layer Transformer, and the time of every step.

    python benchmarks/architectures.py

Random weights: enough for sizes and speed, and for nothing that is said about trained nets. The source's
two demos (docs/sources.md, "Curvature-Guided Transformer Quantization") print the same tables.
"""

from __future__ import annotations

import re
import statistics
import time
from collections import defaultdict

import torch
from torch import nn

from common import parser, write_results
from geoquant.geometry import condition_number
from geoquant.models import find_sites, get_weight, inference
from geoquant.models.zoo import resnet18_imagenet, transformer6
from geoquant.plan import Budget, Plan, allocate, uniform_plan
from geoquant.quantize import quantize
from geoquant.sensitivity import profile

COMPONENT = re.compile(r"(?:^|\.)(q|k|v|o|out|up|down|fc|conv\d|downsample\.0|head|embedding)$")


def component(name: str) -> str:
    """Return which kind of layer a site is, for the table by component."""
    found = COMPONENT.search(name)
    return found.group(1) if found else name


def measure(model: nn.Module, example: torch.Tensor) -> dict[str, object]:
    """Profile by condition number, plan at an average of 6 bits, quantize; time every step."""
    seconds = {}

    def timed(name: str, start: float) -> float:
        now = time.perf_counter()
        seconds[name] = round(now - start, 3)
        return now

    now = time.perf_counter()
    with inference(model):
        for _ in range(4):
            model(example)
    now = timed("calibration (4 batches)", now)
    kappa = {
        site.name: float(condition_number(site.matrix(get_weight(model, site))).value) for site in find_sites(model)
    }
    now = timed("condition numbers", now)
    grids = [f"int{bits}" for bits in range(2, 9)]
    measured = profile(model, [example], grids=grids, predictors=["condition_number", "weight_error"])
    now = timed("rounding errors on 7 grids", now)
    plans: dict[str, Plan] = {
        "condition number + proportional": allocate(
            measured, Budget(average_bits=6), predictor="condition_number", solver="proportional"
        ),
        "weight error + exact": allocate(measured, Budget(average_bits=6), predictor="weight_error"),
    }
    now = timed("allocation (two plans)", now)
    quantize(model, plans["weight error + exact"])
    timed("quantization", now)
    plans["uniform int6"] = uniform_plan(measured.inventory, "int6")
    plans["float"] = uniform_plan(measured.inventory, "fp32")
    return {
        "layers": [
            {
                "layer": name,
                "condition_number": round(value, 2),
                **{key: plan.grid(name).bits for key, plan in plans.items()},
            }
            for name, value in kappa.items()
        ],
        "components": summarise(kappa, plans),
        "bytes": {name: plan.bytes for name, plan in plans.items()},
        "average_bits": {name: round(plan.average_bits, 4) for name, plan in plans.items()},
        "seconds": seconds,
    }


def summarise(kappa: dict[str, float], plans: dict[str, Plan]) -> list[dict[str, object]]:
    """Average condition number and bits by kind of layer."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in kappa:
        groups[component(name)].append(name)
    return [
        {
            "component": kind,
            "layers": len(names),
            "condition_number": round(statistics.median(kappa[name] for name in names), 2),
            **{key: round(statistics.mean(plan.grid(name).bits for name in names), 2) for key, plan in plans.items()},
        }
        for kind, names in groups.items()
    ]


def main() -> None:
    made = parser(__doc__ or "", "architectures")
    made.add_argument("--seed", type=int, default=0)
    arguments = made.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    results = {
        "resnet18_imagenet": measure(resnet18_imagenet(), torch.randn(2, 3, 224, 224)),
        "transformer6": measure(transformer6(), torch.randint(0, 1000, (4, 64))),
    }
    for name, result in results.items():
        print(name, result["bytes"], result["seconds"])
        for row in result["components"]:
            print("  ", row)
    write_results(arguments, results)


if __name__ == "__main__":
    main()
