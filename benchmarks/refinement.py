"""ResNet-20 on CIFAR-10: does trying whole plans improve a solved one, on images that took no part?

    python benchmarks/refinement.py --weights cifar10_resnet20.safetensors

needs CIFAR-10 ($GEOQUANT_DATA_DIR or the Hub). The exact solver's plan of the default predictor's table is refined by
real evaluations through the pipeline that deploys (the default one), compared once by the divergence itself and
once by softened predictions. Calibration: training images without labels, another set for each seed. Held-out: other
training images. Nothing was tuned on test images.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

import geoquant as gq
from common import parser, write_results
from geoquant.cli.inputs import Normalize, read_batches, read_model
from geoquant.evaluation import evaluate, logits
from geoquant.plan import Plan
from geoquant.progress import shown
from geoquant.quantize import quantize
from geoquant.search import pipeline, refine
from geoquant.sensitivity import default_predictors

MODEL = "geoquant.models.zoo:resnet20_cifar10"
GRIDS = tuple(f"int{bits}:mse-signed" for bits in range(2, 9))


class Bench:
    """One calibration set, and the images that judge."""

    def __init__(self, arguments: argparse.Namespace, seed: int) -> None:
        self.model, weights = read_model(MODEL, arguments.weights), arguments.weights
        total = arguments.images + arguments.held_out
        drawn = list(read_batches("cifar10", "train", Normalize.imagenet, weights, 64, total, seed))
        count = -(-arguments.images // 64)
        self.calibration = [images for images, _ in drawn[:count]]
        self.judges = {"held_out": drawn[count:]}
        self.judges["test"] = read_batches("cifar10", "test", Normalize.imagenet, weights, 250, arguments.test_images)
        self.wanted = {name: logits(self.model, batches) for name, batches in self.judges.items()}

    def judged(self, plan: Plan) -> dict[str, Any]:
        """Deploy a plan; return its figures."""
        net = quantize(self.model, plan, self.calibration)
        held, test = (evaluate(net, self.judges[name], reference=self.wanted[name]) for name in self.judges)
        assert held.kl is not None
        assert test.kl is not None
        return {
            "average_bits": round(plan.average_bits, 4),
            "held_out_kl": round(held.kl.value, 5),
            "test_kl": round(test.kl.value, 5),
            "accuracy": round(100 * test.accuracy.value, 2),
        }


def main() -> None:
    made = parser(__doc__ or "", "refinement")
    made.add_argument("--weights", type=Path, required=True)
    made.add_argument("--budgets", type=float, nargs="+", default=[3.0, 2.5], help="inclusive average bits")
    made.add_argument("--seeds", type=int, default=3, help="calibration sets")
    made.add_argument("--images", type=int, default=256, help="calibration images")
    made.add_argument("--held-out", type=int, default=4096, help="training images that judge")
    made.add_argument("--test-images", type=int, default=None, help="fewer test images, for a quick look")
    made.add_argument("--evaluations", type=int, default=40, help="plans that are deployed")
    arguments = made.parse_args()
    torch.set_num_threads(arguments.threads)
    rows: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        bench = Bench(arguments, seed)
        predictors = default_predictors(bench.model)
        measured = gq.profile(bench.model, bench.calibration, predictors=predictors, grids=GRIDS, seed=seed)
        for budget in arguments.budgets:
            start = gq.allocate(measured, gq.Budget(average_bits=budget))
            rows.append({"seed": seed, "budget": budget, "compared by": "not refined", **bench.judged(start)})
            for temperature in (1.0, None):
                with shown():
                    found = refine(
                        bench.model,
                        start,
                        bench.calibration,
                        deploy=pipeline(bench.model, bench.calibration),
                        evaluations=arguments.evaluations,
                        temperature=temperature,
                        seed=seed,
                    )
                how = "divergence" if temperature else f"softened predictions (temperature {found.temperature:g})"
                accepted = sum(step.accepted for step in found.trace) - 1
                row = {"seed": seed, "budget": budget, "compared by": how, "accepted": accepted}
                rows.append({**row, **bench.judged(found.plan)})
                print(rows[-1], flush=True)
                write_results(arguments, {"rows": rows})


if __name__ == "__main__":
    main()
