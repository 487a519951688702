"""What one cell measures: a trained net, one method over a range of sizes, or what CAQ knows and takes.

Every method chooses among the same grids and is judged at the same sizes: that of the uniform grid of each width,
scales included, and straight lines between them. Plans are rounded to nearest, except where the method's name says that
the whole pipeline deploys it. Sizes that a method cannot reach have no row.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from geoquant.allocation import Cost, Problem, cheapest_within
from geoquant.allocation.random_search import random_selections
from geoquant.bounds import error_bound, error_estimate, error_observed
from geoquant.evaluation import Evaluation, evaluate, kl_per_sample, logits
from geoquant.models import Inventory, set_weight_, take_inventory
from geoquant.plan import Budget, Plan, allocate, uniform_plan
from geoquant.quantize import quantize
from geoquant.sensitivity import Predictor, Profile, Subject, make_subject, profile, stored_bits
from geoquant.study.studies.bit_allocation.forms import (
    MENU,
    TOLERANCES,
    SoundCaq,
    WrittenCaq,
    composed_error,
    disturbed,
    facts,
    local_error,
    naive_error,
    tolerances,
    written_constants,
    written_plan,
    written_plans,
)
from geoquant.study.trained import Recipe, Trained, trained

WIDTHS = (2, 3, 4, 5, 6, 7, 8, 16, 32)
METHODS = (
    "uniform",
    "uniform, best pipeline",
    "gradient norm",
    "Hessian diagonal",
    "random search",
    "CAQ as written",
    "CAQ sound",
    "geoquant",
)
PREDICTORS: Mapping[str, str | Predictor | None] = {
    "gradient norm": "gradient_norm",
    "Hessian diagonal": "hessian_diagonal",
    "CAQ sound": SoundCaq(),
    "geoquant": None,  # its default
}
PIPELINE = ("uniform, best pipeline", "geoquant")
"""Deployed by the default rounding with corrected norms; all others by rounding to nearest."""
WRITTEN = "CAQ as written"
SOLVERS: tuple[Literal["gradient", "exact"], ...] = ("gradient", "exact")


def grid_of(width: int) -> str:
    """Return the grid of a width, 32 being the float weight.

    >>> grid_of(3), grid_of(32)
    ('int3:mse-signed', 'fp32')
    """
    return "fp32" if width == 32 else f"int{width}:mse-signed"


def size_at(inventory: Inventory, width: float) -> float:
    """Return average bits, scales included, of a uniform grid; between two widths on the line between them.

    >>> net = take_inventory(nn.Sequential(nn.Linear(16, 4)))     # a channel of 16 weights has a scale of 16 bits
    >>> size_at(net, 2), size_at(net, 2.5)
    (3.0, 3.5)
    """
    sizes = [uniform_plan(inventory, grid_of(each)).average_bits for each in WIDTHS]
    return float(np.interp(width, WIDTHS, sizes))


@dataclass(frozen=True, eq=False)
class Bench:
    """A trained net, and what it is calibrated and judged on."""

    net: Trained
    calibration: Sequence[Any]
    test: Sequence[Any]
    seed: int

    @cached_property
    def inventory(self) -> Inventory:
        """The layers of the net."""
        return take_inventory(self.net.model)

    def measure(self, predictor: str | Predictor | None, widths: Sequence[int] = WIDTHS) -> Profile:
        """Return one predictor's table on the grids of these widths; geoquant's default where none is named."""
        grids, chosen = [grid_of(width) for width in widths], None if predictor is None else [predictor]
        return profile(self.net.model, self.calibration, grids=grids, predictors=chosen, seed=self.seed)

    def constants(self) -> tuple[Any, ...]:
        """Return what CAQ as written measures of every layer."""
        return written_constants(make_subject(self.net.model, self.calibration, grids=["fp32"], seed=self.seed))


def bench_of(configuration: Mapping[str, Any]) -> Bench:
    """Return the net of a cell, trained or from the cache."""
    recipe = Recipe(*(configuration[name] for name in ("net", "data", "images", "epochs", "seed")))
    net = trained(recipe)
    calibration = net.held_out.batches(64, configuration["calibration"], seed=recipe.seed)
    return Bench(net, calibration, net.test.batches(250, configuration["test"], seed=0), recipe.seed)


def run(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Measure one cell; its part says what."""
    return PARTS[configuration["part"]](configuration)


def sweep(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Judge the plans of one method, one for each width."""
    bench, start = bench_of(configuration), time.process_time()
    plans = plans_of(bench, configuration)
    seconds = time.process_time() - start
    reference = logits(bench.net.model, bench.test)
    known: dict[tuple[str, ...], Evaluation] = {}
    rows = []
    for width, plan in plans.items():
        if plan.names not in known:
            known[plan.names] = evaluate(deployed(bench, plan, configuration["method"]), bench.test, None, reference)
        rows.append(row_of(width, size_at(bench.inventory, width), plan, known[plan.names]))
    exact = evaluate(bench.net.model, bench.test)
    return {
        "accuracy_float": 100 * exact.accuracy.value,
        "bytes_float": uniform_plan(bench.inventory, "fp32").bytes,
        "layers": bench.inventory.names,
        "bits": {f"{width:g}": [grid.bits for grid in plan.grids] for width, plan in plans.items()},
        "seconds_allocation": seconds,
        "rows": rows,
    }


def row_of(width: float, size: float, plan: Plan, found: Evaluation) -> dict[str, Any]:
    """Return one point of a curve."""
    assert found.kl is not None  # a reference was given
    return {
        "width": width,
        "budget": size,
        "average_bits": plan.average_bits,
        "bytes": plan.bytes,
        "accuracy": 100 * found.accuracy.value,
        "accuracy_stderr": 100 * found.accuracy.stderr,
        "kl": found.kl.value,
    }


def deployed(bench: Bench, plan: Plan, method: str) -> nn.Module:
    """Return the net of a plan."""
    if method in PIPELINE:
        return quantize(bench.net.model, plan, bench.calibration, seed=bench.seed)
    return quantize(bench.net.model, plan)


def plans_of(bench: Bench, configuration: Mapping[str, Any]) -> dict[float, Plan]:
    """Return a plan for each width that the method can meet."""
    widths, method = configuration["widths"], configuration["method"]
    budgets = {width: size_at(bench.inventory, width) for width in widths}
    if method.startswith("uniform"):
        found = [uniform_plan(bench.inventory, grid_of(width)) for width in WIDTHS]
        return best_that_fit(budgets, found[::-1])
    if method == "random search":
        return random_plans(bench, budgets, configuration["draws"])
    if method == WRITTEN:
        return best_that_fit(budgets, caq_as_written(bench, configuration))
    table = bench.measure(PREDICTORS[method])
    return {width: allocate(table, Budget(average_bits=budget)) for width, budget in budgets.items()}


def best_that_fit(budgets: Mapping[float, float], plans: Sequence[Plan]) -> dict[float, Plan]:
    """Return, for each budget, the first of `plans` (the best first) that fits; budgets that none fits are left out."""
    found = {}
    for width, budget in budgets.items():
        fitting = next((plan for plan in plans if plan.average_bits <= budget * (1 + 1e-12)), None)
        if fitting is not None:
            found[width] = fitting
    return found


def caq_as_written(bench: Bench, configuration: Mapping[str, Any]) -> list[Plan]:
    """Return CAQ's plans, the most exact first; with ``wrong_by`` every κ is off by up to that factor."""
    constants = bench.constants()
    if configuration.get("wrong_by", 1) != 1:
        constants = disturbed(constants, configuration["wrong_by"], configuration["draw"])
    return written_plans(bench.measure(WrittenCaq(constants), MENU_WIDTHS), constants)


MENU_WIDTHS = tuple(32 if each == "fp32" else int(each) for each in MENU)


def random_plans(bench: Bench, budgets: Mapping[float, float], draws: int) -> dict[float, Plan]:
    """Draw allocations within each budget and keep the one of least divergence on the calibration images."""
    grids = [grid_of(width) for width in WIDTHS]
    subject = make_subject(bench.net.model, bench.calibration, grids=grids, seed=bench.seed)
    bits, harm = stored_bits(subject).astype(np.int64), Harm(subject)
    found = {}
    for width, budget in budgets.items():
        limit = Cost("bits", bits, int(budget * bench.inventory.weights * (1 + 1e-12)))
        drawn = random_selections(Problem(np.zeros(bits.shape), (limit,)), bits.argmin(1), draws, bench.seed)
        best = min(sorted({tuple(columns) for columns in drawn.tolist()}), key=harm)
        found[width] = Plan(bench.inventory, tuple(grids[column] for column in best))
    return found


class Harm:
    """Divergence from the float model on the calibration images, with a column of the subject's grids per layer."""

    def __init__(self, subject: Subject) -> None:
        self._subject, self._model = subject, copy.deepcopy(subject.model)
        self._float = logits(subject.model, subject.batches)

    def __call__(self, columns: Sequence[int]) -> float:
        """Round the copy anew and compare."""
        for site, rounded, column in zip(self._subject.sites, self._subject.quantized, columns, strict=True):
            set_weight_(self._model, site, site.restore(rounded[column].dequantize()))
        pairs = zip(logits(self._model, self._subject.batches), self._float, strict=True)
        return float(torch.cat([kl_per_sample(wanted, found)[0] for found, wanted in pairs]).mean())


def caq_facts(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Measure what CAQ knows of a net, how long that takes, and how far its error functional is from what is seen."""
    bench, start = bench_of(configuration), time.process_time()
    constants = bench.constants()
    measured = time.process_time()
    table = bench.measure(WrittenCaq(constants), MENU_WIDTHS)
    written_plan(table, constants, tolerances(table)[TOLERANCES // 2])
    planned = time.process_time()
    inputs = torch.cat([images for images, _ in bench.test])[: configuration["inputs"]]
    return {
        "seconds_training": bench.net.seconds,
        "seconds_curvature": measured - start,
        "seconds_caq": planned - start,
        "constants": facts(constants),
        "first_layer": first_layer(bench, constants, inputs),
        "rows": [tightness(bench, constants, width, inputs) for width in configuration["widths"]],
    }


def tightness(bench: Bench, constants: Sequence[Any], width: int, inputs: torch.Tensor) -> dict[str, Any]:
    """Compare what is predicted and proven of the output's change with what is seen, in the Euclidean norm."""
    model, plan = bench.net.model, uniform_plan(bench.inventory, grid_of(width))
    rounded = quantize(model, plan)
    widths = dict.fromkeys(bench.inventory.names, width)
    observed = error_observed(model, rounded, inputs, norm="euclidean")
    estimate = error_estimate(model, rounded, inputs, norm="euclidean")
    bound = error_bound(model, rounded, inputs, method="norms", norm="euclidean")
    return {
        "width": width,
        "observed": float(observed.max()),
        "estimate": float(estimate.values.max()),
        "bound": float(bound.values.max()),
        "written": composed_error(constants, widths),
        "naive": naive_error(constants, widths),
        **{f"share of {name}": float(part.mean()) for name, part in estimate.contributions.items()},
    }


def first_layer(bench: Bench, constants: Sequence[Any], inputs: torch.Tensor) -> list[dict[str, float]]:
    """Round the images to few bits of mantissa; compare what the first layer then errs with the source's bound."""
    first = min(constants, key=lambda each: each.order)
    layer = bench.net.model.get_submodule(first.site).double()
    x = inputs.double().flatten(1) if isinstance(layer, nn.Linear) else inputs.double()
    found = []
    with torch.no_grad():
        for bits in (4, 8, 16):
            error = (layer(to_mantissa(x, bits)) - layer(x)).flatten(1).norm(dim=1)
            size = x.flatten(1).norm(dim=1)
            claimed = [local_error(replace(first, diameter=float(one)), bits) for one in size]
            ratio = error / torch.tensor(claimed, dtype=torch.float64)
            found.append({"bits": bits, "least": float(ratio.min()), "largest": float(ratio.max())})
    layer.float()
    return found


def to_mantissa(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Round to so many bits behind the leading one: a relative error of at most 2^(−bits−1).

    >>> to_mantissa(torch.tensor([1.3, 5.0, 0.0]), 2).tolist()
    [1.25, 5.0, 0.0]
    """
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2.0 ** (bits + 1)).round() / 2.0 ** (bits + 1), exponent)


def solver_time(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Time both solvers of CAQ's problem on a made net of many layers."""
    layers, draw = configuration["layers"], np.random.default_rng(configuration["seed"])
    bits = np.array(MENU_WIDTHS, float)
    scale = np.exp(draw.normal(0, 2, (layers, 1)))
    error, cost = scale * 2.0**-bits, np.outer(draw.integers(10_000, 1_000_000, layers), bits).astype(np.int64)
    tolerance = float(error[:, 1].sum())
    found: dict[str, float] = {}
    for method in SOLVERS:
        start = time.process_time()
        answer = cheapest_within(error, cost, tolerance, method=method, widths=bits)
        found |= {f"seconds_{method}": time.process_time() - start, f"cost_{method}": answer.cost}
        found |= {f"gap_{method}": answer.cost / max(answer.lower_bound, 1.0) - 1}
    return found


PARTS: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "sweep": sweep,
    "facts": caq_facts,
    "solver": solver_time,
}
