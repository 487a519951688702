"""ResNet-20 on CIFAR-10: how well does each predictor rank plans by the damage they really do?

    python benchmarks/damage_rank.py --weights cifar10_resnet20.safetensors

needs CIFAR-10 ($GEOQUANT_DATA_DIR or the Hub). Random plans are drawn at 2.5 and 3.0 ± 0.02 average bits, deployed with
the given rounding and norm correction, and their KL to the float model is measured on training images that took no
part in calibration. A predictor's damage of a plan is the sum over its layers (`gauss_newton_gram` keeps cross
terms). Rank correlations come with bootstrap intervals over plans. What is measured is kept: a second run resumes.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau, spearmanr

from common import parser, write_results
from geoquant.cli.inputs import Normalize, read_batches, read_model
from geoquant.evaluation import evaluate, logits
from geoquant.grids import Grid
from geoquant.models import take_inventory
from geoquant.plan import Plan
from geoquant.progress import shown
from geoquant.quantize import quantize
from geoquant.sensitivity import (
    PREDICTORS,
    MarginalKL,
    SampledPlans,
    Subject,
    gauss_newton_shifts,
    make_subject,
    random_columns,
    stored_bits,
    thrifty_columns,
)

MODEL = "geoquant.models.zoo:resnet20_cifar10"
WIDTHS = (2, 3, 4, 5, 6, 7, 8)
BUDGETS = (2.5, 3.0)
BATCH = 64
RESAMPLES = 2000
# Arguments that results depend on; those of other settings are not resumed.
SETTING = ("family", "rounding", "norms", "images", "held_out", "labels", "tolerance", "seed")

Columns = tuple[int, ...]
Predict = Callable[[Columns], float]


def random_plans(subject: Subject, budget: float, count: int, seed: int) -> list[Columns]:
    """Draw `count` different plans at `budget`; more of them begin with the same ones."""
    draw = np.random.default_rng([seed, round(1000 * budget)])
    cost, weights = stored_bits(subject), sum(site.weights for site in subject.sites)
    found: dict[Columns, None] = {}
    while len(found) < count:
        found.setdefault(random_columns(cost, weights, budget, draw))
    return list(found)


def resumed(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what an earlier run with the same setting left: real damage by plan, and finished rows."""
    setting = {key: getattr(arguments, key) for key in SETTING}
    fresh: dict[str, Any] = {"setting": setting, "plans": {}, "rows": []}
    if not arguments.output.exists():
        return fresh
    document = json.loads(arguments.output.read_text())
    return {key: document[key] for key in fresh} if document["setting"] == setting else fresh


def interval(measure: Callable[..., Any], predicted: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """Return a rank correlation with its 95 % bootstrap interval over plans."""
    draw = np.random.default_rng(0)
    picks = draw.integers(0, len(real), (RESAMPLES, len(real)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a few plans may all be drawn alike
        values = [measure(predicted[pick], real[pick]).statistic for pick in picks]
    low, high = np.nanquantile(values, [0.025, 0.975]) if np.isfinite(values).any() else (-1.0, 1.0)
    value = measure(predicted, real).statistic
    return {name: round(float(np.nan_to_num(x)), 4) for name, x in (("value", value), ("low", low), ("high", high))}


def additive(damage: Any) -> Predict:
    """Predict a plan's damage as the sum of its choices' damages."""
    matrix = np.array(damage)
    return lambda columns: float(matrix[np.arange(len(columns)), list(columns)].sum())


class Bench:
    """Everything that one setting measures."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.model = read_model(MODEL, arguments.weights)
        self.inventory = take_inventory(self.model)
        total = arguments.images + arguments.held_out
        batches = list(
            read_batches("cifar10", "train", Normalize.imagenet, arguments.weights, BATCH, total, arguments.seed)
        )
        first = -(-arguments.images // BATCH)
        self.calibration, self.held_out = batches[:first], batches[first:]
        self.wanted = logits(self.model, self.held_out)
        grids = [arguments.family.format(bits) for bits in WIDTHS]
        unlabelled = [inputs for inputs, _ in self.calibration]
        self.subject = make_subject(self.model, unlabelled, grids=grids, seed=arguments.seed)
        self.labelled = make_subject(self.model, self.calibration, grids=grids, seed=arguments.seed)
        self.costs: dict[str, dict[str, float]] = {}
        self.known: dict[str, Predict] = {}

    def deploy(self, grids: Sequence[Grid]) -> torch.nn.Module:
        """Quantize a copy of the model through the pipeline."""
        settings = {"rounding": self.arguments.rounding, "norms": self.arguments.norms}
        plan = Plan(self.inventory, tuple(str(grid) for grid in grids))
        return quantize(self.model, plan, self.subject.batches, **settings)

    def real(self, columns: Columns) -> dict[str, float]:
        """Deploy a plan and measure its KL to the float model on held-out images."""
        deployed = self.deploy([self.subject.grids[column] for column in columns])
        found = evaluate(deployed, self.held_out, reference=self.wanted).kl
        return {"kl": found.value, "stderr": found.stderr}

    def predictor(self, name: str, budget: float) -> Predict:
        """Return what predicts a plan's damage; one that needs an operating plan gets that of this budget."""
        if name in ("marginal_kl_deployed", "marginal_kl_exact"):
            base = [self.subject.grids[column] for column in thrifty_columns(self.subject, budget)]
            mine = MarginalKL(base, self.deploy, exact=name.endswith("exact"), tolerance=self.arguments.tolerance)
            marginals = self._timed(name, lambda: mine.marginals(self.subject))
            return lambda columns: float(marginals.damage(columns))
        if name == "sampled_plans_deployed":
            mine = SampledPlans(budget, self.deploy, prior=PREDICTORS["modelopt_gradient"])
            sampled = self._timed(name, lambda: mine.sample(self.subject))
            return additive(sampled.beliefs.mean())
        if name not in self.known:
            self.known[name] = self._float_point(name)
        return self.known[name]

    def _float_point(self, name: str) -> Predict:
        if name == "gauss_newton_gram":
            shifts = self._timed(name, lambda: gauss_newton_shifts(self.subject))
            return lambda columns: float(shifts.damage(columns)[0])
        subject = self.labelled if self.arguments.labels else self.subject
        return additive(self._timed(name, lambda: PREDICTORS[name].measure(subject)).damage)

    def _timed(self, name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        answer = work()
        seconds = round(time.perf_counter() - start, 2)
        self.costs[name] = {"seconds": seconds, "forward_equivalents": round(answer.cost, 2)}
        return answer

    def row(self, name: str, budget: float, wanted: Sequence[Columns], real: np.ndarray) -> dict[str, Any]:
        """Compare one predictor with the real damages."""
        predict = self.predictor(name, budget)
        predicted = np.array([predict(columns) for columns in wanted])
        return {
            "predictor": name,
            "average_bits": budget,
            "plans": len(real),
            "spearman": interval(spearmanr, predicted, real),
            "kendall": interval(kendalltau, predicted, real),
            **self.costs[name],
        }


def key_of(budget: float, columns: Columns) -> str:
    """Name a plan by its widths."""
    return f"{budget:g}: " + " ".join(str(WIDTHS[column]) for column in columns)


def run(arguments: argparse.Namespace) -> None:
    """Measure what is not yet known, and write after each step."""
    bench, results = Bench(arguments), resumed(arguments)
    bench.subject.quantized, bench.labelled.quantized  # noqa: B018  # rounding is nobody's time
    done = {(row["predictor"], row["average_bits"]) for row in results["rows"] if row["plans"] == arguments.plans}
    results["rows"] = [row for row in results["rows"] if row["plans"] == arguments.plans]
    for budget in BUDGETS:
        wanted = random_plans(bench.subject, budget, arguments.plans, arguments.seed)
        for columns in wanted:
            if key_of(budget, columns) not in results["plans"]:
                results["plans"][key_of(budget, columns)] = bench.real(columns)
                write_results(arguments, results)
        real = np.array([results["plans"][key_of(budget, columns)]["kl"] for columns in wanted])
        for name in arguments.predictors.split(","):
            if (name, budget) not in done:
                row = bench.row(name, budget, wanted, real)
                results["rows"].append(row)
                print(f"{budget:g} {name:24s} {row['spearman']} {row['kendall']} {row['seconds']} s", flush=True)
                write_results(arguments, results)


def main() -> None:
    made = parser(__doc__ or "", "damage_rank")
    made.add_argument("--weights", type=Path, required=True)
    made.add_argument("--plans", type=int, default=100, help="random plans at each budget")
    made.add_argument("--images", type=int, default=512, help="calibration images")
    made.add_argument("--held-out", type=int, default=1024, help="other training images, on which damage is real")
    made.add_argument("--family", default="int{}:mse-signed", help="grid, {} being the width")
    made.add_argument("--rounding", default="nearest")
    made.add_argument("--norms", default="relative")
    made.add_argument("--labels", action="store_true", help="show the labels to predictors that can use them")
    made.add_argument("--tolerance", type=float, default=0.1, help="of marginal_kl's standard errors")
    made.add_argument("--seed", type=int, default=0)
    everyone = [*PREDICTORS.names(), "gauss_newton_gram", "marginal_kl_deployed", "marginal_kl_exact"]
    everyone.append("sampled_plans_deployed")
    made.add_argument("--predictors", default=",".join(everyone))
    arguments = made.parse_args()
    torch.set_num_threads(arguments.threads)
    with shown():
        run(arguments)


if __name__ == "__main__":
    main()
