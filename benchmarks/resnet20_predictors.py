"""ResNet-20 on CIFAR-10, weights only: every damage predictor at every budget, deployed through the same pipeline.

    python benchmarks/resnet20_predictors.py --weights cifar10_resnet20.safetensors

needs CIFAR-10 ($GEOQUANT_DATA_DIR or the Hub). A predictor's table goes to the exact solver; the plan is rounded by
GPTQ on the calibration images, norms corrected. Calibration: training images without labels (what wants labels takes
the float net's own answers), another set for each seed; figures: all 10,000 test images. `marginal_kl` and
`sampled_plans` are measured at the budget, through the same pipeline. Predictors that choose the same plan share its
figure. What is measured is kept: a second run resumes.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path
from typing import Any

import torch

from common import parser, write_results
from geoquant.cli.inputs import Normalize, read_batches, read_model
from geoquant.evaluation import evaluate, logits
from geoquant.models import take_inventory
from geoquant.plan import Budget, Plan, allocate
from geoquant.progress import shown
from geoquant.quantize import quantize
from geoquant.sensitivity import PREDICTORS, MarginalKL, Predictor, Profile, SampledPlans, profile

MODEL = "geoquant.models.zoo:resnet20_cifar10"
GRIDS = [f"int{bits}:mse-signed" for bits in range(2, 9)]
AT_BUDGET = ("marginal_kl", "sampled_plans")
BUDGETS = (4.0, 3.0, 2.5, 2.25)
# Arguments that results depend on; those of other settings are not resumed.
SETTING = ("images", "test_images")


class Bench:
    """One calibration set, and what was measured on it."""

    def __init__(self, arguments: argparse.Namespace, seed: int) -> None:
        self.arguments, self.seed = arguments, seed
        self.model = read_model(MODEL, arguments.weights)
        self.inventory = take_inventory(self.model)
        labelled = self._read("train", 64, arguments.images, seed)
        self.batches = [inputs for inputs, _ in labelled]
        self.test = self._read("test", 250, arguments.test_images, None)
        self.wanted = logits(self.model, self.test)
        self._known: dict[tuple[str, float | None], tuple[Profile, float]] = {}

    def _read(self, split: str, size: int, limit: int | None, seed: int | None) -> list[Any]:
        return list(read_batches("cifar10", split, Normalize.imagenet, self.arguments.weights, size, limit, seed))

    def deploy(self, grids: Any) -> torch.nn.Module:
        """Quantize a copy of the model through the pipeline."""
        plan = grids if isinstance(grids, Plan) else Plan(self.inventory, tuple(map(str, grids)))
        return quantize(self.model, plan, self.batches, rounding="gptq", seed=self.seed)

    def predictor(self, name: str, budget: float) -> Predictor:
        """Return a predictor, set to the budget and the pipeline where it takes them."""
        if name == "marginal_kl":
            return MarginalKL(deploy=self.deploy, average_bits=budget, deploy_cost=1.0)
        if name == "sampled_plans":
            return SampledPlans(budget, self.deploy, prior=PREDICTORS["modelopt_gradient"], deploy_cost=1.0)
        return PREDICTORS[name]

    def profile(self, name: str, budget: float) -> tuple[Profile, float]:
        """Measure once what does not depend on the budget; return the profile and the seconds it took."""
        key = (name, budget if name in AT_BUDGET else None)
        if key not in self._known:
            start = time.perf_counter()
            measured = profile(self.model, self.batches, grids=GRIDS, predictors=[self.predictor(name, budget)])
            self._known[key] = measured, round(time.perf_counter() - start, 1)
        return self._known[key]

    def row(self, name: str, budget: float, kept: list[dict[str, Any]]) -> dict[str, Any]:
        """Profile, allocate, deploy and evaluate."""
        measured, seconds = self.profile(name, budget)
        plan = allocate(measured, Budget(average_bits=budget))
        known = next((row for row in kept if row["seed"] == self.seed and row["plan"] == list(plan.names)), None)
        if known is None:
            found = evaluate(self.deploy(plan), self.test, reference=self.wanted)
            known = {"accuracy": round(100 * found.accuracy.value, 2), "kl": round(found.kl.value, 5)}
        return {
            "predictor": name,
            "budget": budget,
            "seed": self.seed,
            "average_bits": round(plan.average_bits, 4),
            "accuracy": known["accuracy"],
            "kl": known["kl"],
            "seconds": seconds,
            "forward_equivalents": round(measured.cost, 1),
            "plan": list(plan.names),
        }


def resumed(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return what an earlier run with the same setting left."""
    if not arguments.output.exists():
        return []
    document = json.loads(arguments.output.read_text())
    setting = {key: getattr(arguments, key) for key in SETTING}
    return document["rows"] if document["setting"] == setting else []


def main() -> None:
    made = parser(__doc__ or "", "resnet20_predictors")
    made.add_argument("--weights", type=Path, required=True)
    made.add_argument("--seeds", type=int, default=3, help="calibration sets")
    made.add_argument("--images", type=int, default=512, help="calibration images")
    made.add_argument("--test-images", type=int, default=None, help="fewer test images, for a quick look")
    made.add_argument("--only", default="", help="only predictors in whose name this regular expression is found")
    arguments = made.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = resumed(arguments)
    setting = {key: getattr(arguments, key) for key in SETTING}
    with shown():
        for seed in range(arguments.seeds):
            bench = Bench(arguments, seed)
            for name in (name for name in PREDICTORS.names() if re.search(arguments.only, name)):
                for budget in BUDGETS:
                    if any((row["predictor"], row["budget"], row["seed"]) == (name, budget, seed) for row in rows):
                        continue
                    rows.append(bench.row(name, budget, rows))
                    print(seed, name, budget, rows[-1]["accuracy"], f"{rows[-1]['seconds']} s", flush=True)
                    write_results(arguments, {"setting": setting, "rows": rows})


if __name__ == "__main__":
    main()
