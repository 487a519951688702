"""One cell each: the table on MNIST, the times, the layers of a trained net, and the theorem tests as oracles."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from geoquant.allocation import Cost, Problem, continuous_bits, solve
from geoquant.allocation.protocol import SOLVERS
from geoquant.bounds import ErrorFunctional, compose, compose_counting_twice, necessary_outputs
from geoquant.bounds import seed9_condition_number_bits as document_bits
from geoquant.evaluation import divergence, evaluate
from geoquant.geometry import condition_number, curvature_sampled
from geoquant.models import find_sites, get_weight, inference, take_inventory
from geoquant.models.zoo import resnet18_imagenet
from geoquant.plan import Budget, Plan, allocate, uniform_plan
from geoquant.quantize import quantize
from geoquant.sensitivity import Profile, profile
from geoquant.study.cases import case_of
from geoquant.study.layers import layer_facts
from geoquant.study.trained import Recipe, trained

WIDTHS = (8, 6, 4, 3, 2)
UNIFORM = "uniform (narrow, max-abs, per tensor)"
GUIDED = "guided: condition number + proportional"
OURS = "one-layer KL + exact"
PREDICTORS = ("condition_number", "weight_error", "one_layer_kl")
AVERAGE = 6
"""Bits on average of the source's analyses of a ResNet and a Transformer."""


def run(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Measure one cell; its part says what."""
    return PARTS[configuration["part"]](configuration)


def grid_of(bits: int) -> str:
    """Return the source's grid: s = max|w|/(2^(b−1) − 1) of a whole tensor."""
    return f"int{bits}:narrow:maxabs:tensor"


def plans(measured: Profile, bits: int) -> dict[str, Plan]:
    """Return the plans to compare at the inclusive size of the source's uniform grid of this width."""
    uniform = uniform_plan(measured.inventory, grid_of(bits))
    budget = Budget(average_bits=uniform.average_bits)
    return {
        UNIFORM: uniform,
        GUIDED: allocate(measured, budget, predictor="condition_number", solver="proportional"),
        "condition number + exact": allocate(measured, budget, predictor="condition_number"),
        "weight error + exact": allocate(measured, budget, predictor="weight_error"),
        OURS: allocate(measured, budget, predictor="one_layer_kl"),
    }


def perceptron(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Compare guided and uniform on a trained net, in percent of the test images."""
    net = trained(Recipe(*(configuration[name] for name in ("net", "data", "images", "epochs", "seed"))))
    calibration = net.held_out.batches(128, configuration["calibration"], seed=configuration["seed"])
    test = net.test.batches(500, configuration["test"], seed=0)
    grids = [grid_of(bits) for bits in range(2, 9)]
    measured = profile(net.model, calibration, grids=grids, predictors=PREDICTORS, seed=configuration["seed"])
    exact = 100 * evaluate(net.model, test).accuracy.value
    rows = [
        {
            "bits": bits,
            "method": name,
            "average_bits": plan.average_bits,
            "accuracy": 100 * evaluate(quantize(net.model, plan), test).accuracy.value,
        }
        for bits in WIDTHS
        for name, plan in plans(measured, bits).items()
    ]
    return {"accuracy_float": exact, "rows": rows}


def times(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Time the source's five steps on a ResNet-18 of random weights, in processor seconds."""
    torch.manual_seed(configuration["seed"])
    model, size = resnet18_imagenet().eval(), configuration["pixels"]
    batches = [torch.randn(1, 3, size, size) for _ in range(configuration["batches"])]
    found, start = {}, time.process_time()

    def lap(name: str) -> None:
        nonlocal start
        now = time.process_time()
        found[f"seconds_{name}"], start = now - start, now

    with inference(model):
        for batch in batches:
            model(batch)
    lap("calibration")
    sites = find_sites(model)
    kappa = [float(condition_number(site.matrix(get_weight(model, site))).value) for site in sites]
    lap("curvature")
    plan = _proportional(model, np.array(kappa))
    lap("optimisation")
    quantize(model, plan)
    lap("quantization")
    weights = sum(site.weights for site in sites)
    return {**found, "seconds_total": sum(found.values()), "weights": weights}


def _proportional(model: nn.Module, kappa: Any) -> Plan:
    """Return the plan of the source's proportional strategy at six bits on average."""
    inventory = take_inventory(model)
    bits = np.arange(2, 9)
    grids = [grid_of(int(each)) for each in bits]
    cost = np.array([[each.total_bits for each in uniform_plan(inventory, grid).costs] for grid in grids]).T
    limit = int(uniform_plan(inventory, grid_of(AVERAGE)).average_bits * inventory.weights)
    weights = np.array([site.weights for site in inventory.sites])
    problem = Problem(
        kappa[:, None] * 2.0**-bits, (Cost("bits", cost, limit),), weights=weights, widths=bits.astype(float)
    )
    selection = SOLVERS["proportional"](problem).selection
    return Plan(inventory, tuple(grids[column] for column in selection))


def net_layers(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Measure every layer of a trained net, and, for a Transformer, whole kinds of projections together."""
    case = case_of(configuration)
    rows = layer_facts(case.model, case.calibration, AVERAGE, configuration["seed"])
    found: dict[str, Any] = {"layers": len(rows), "rows": [{**row, "part": part_of(row["layer"])} for row in rows]}
    if configuration["part"] == "transformer":
        inventory = take_inventory(case.model)
        for name, parts in (("attention", ("q", "k", "v", "out")), ("feed_forward", ("feed-forward",))):
            chosen = {site.name: "int3" for site in inventory.sites if part_of(site.name) in parts}
            plan = uniform_plan(inventory, "fp32", chosen)
            harm = divergence(case.model, quantize(case.model, plan), case.test)
            found[f"kl_{name}"] = harm.value
            found[f"weights_{name}"] = sum(site.weights for site in inventory.sites if site.name in chosen)
    return found


def part_of(name: str) -> str:
    """Return the kind of a layer in a Transformer, or the stage of a residual net.

    >>> part_of("model.layers.3.self_attn.q_proj"), part_of("model.layers.0.mlp.up_proj"), part_of("layer2.0.conv1")
    ('q', 'feed-forward', 'layer2')
    """
    last = name.rpartition(".")[2]
    kinds = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "out"}
    if last in kinds:
        return kinds[last]
    return "feed-forward" if last in ("gate_proj", "up_proj", "down_proj") else name.partition(".")[0]


def oracles(_: Mapping[str, Any]) -> dict[str, Any]:
    """Hold the source's theorem tests to cases with known answers."""
    return {**_output_coding(), **_composition(), **_softmax(), **_strategies()}


def _output_coding() -> dict[str, Any]:
    """Code the outputs of ½·8·x² on [−1, 1] with an error of at most 1/1000: how many values do it?"""
    curvature, diameter, tolerance = 4.0, 2.0, 1e-3
    outputs = necessary_outputs(curvature, diameter, tolerance)
    x = torch.linspace(-1, 1, 200_001, dtype=torch.float64)
    y = 4 * x**2
    errors = {}
    for count in (outputs, outputs - 1):
        step = 4.0 / count  # evenly over the values, which lie in [0, 4]: no code of so many values does better
        coded = (torch.floor(y / step).clamp(max=count - 1) + 0.5) * step
        errors[count] = float((coded - y).abs().max())
    return {
        "outputs": outputs,
        "error_of_outputs": errors[outputs],
        "error_of_one_fewer": errors[outputs - 1],
        "tolerance": tolerance,
        "bits_of_outputs": math.log2(outputs),
        "bits_of_document": document_bits(curvature, diameter, tolerance),
        "bits_of_its_example": document_bits(100.0, 2.0, 1e-6),
    }


def _composition() -> dict[str, Any]:
    """Compose three layers that each err: by the sound rule, by the document's, and on random chains."""
    layers = [ErrorFunctional(2.0, 0.1), ErrorFunctional(3.0, 0.2), ErrorFunctional(5.0, 0.3)]  # in order
    sound = compose(layers)(0.0)
    twice = compose_counting_twice(layers[2], compose_counting_twice(layers[1], layers[0]))(0.0)
    draw, ratios = torch.Generator().manual_seed(0), []
    for _ in range(200):
        ratios.append(_seen_over_bound(draw))
    return {
        "composed": sound,
        "by_hand": 5 * 3 * 0.1 + 5 * 0.2 + 0.3,
        "counted_twice": twice,
        "largest_seen_over_bound": max(ratios),
    }


def _seen_over_bound(draw: torch.Generator) -> float:
    """Return the error of a random chain of rounded layers over what the composition allows."""
    exact = [torch.randn(8, 8, generator=draw, dtype=torch.float64) for _ in range(3)]
    rounded = [(weight * 8).round() / 8 for weight in exact]
    x = torch.randn(8, generator=draw, dtype=torch.float64)
    clean, moved, bound = x, x, 0.0
    for weight, other in zip(exact, rounded, strict=True):
        local = float(torch.linalg.matrix_norm(other - weight, 2) * moved.norm())  # at the perturbed input
        bound = float(torch.linalg.matrix_norm(weight, 2)) * bound + local
        clean, moved = (weight @ clean).relu(), (other @ moved).relu()
    return float((moved - clean).norm()) / bound


def _softmax() -> dict[str, Any]:
    """Sample the curvature of softmax where all inputs are shifted: the document's e^(2 max x) grows, κ does not."""
    points = torch.tensor([[0.0, 0.5, -0.5], [0.3, -0.1, 0.0]], dtype=torch.float64)
    at = [curvature_sampled(nn.Softmax(-1), points + shift, starts=2).value for shift in (0.0, 10.0)]
    return {
        "softmax_curvature": at[0],
        "softmax_curvature_shifted": at[1],
        "softmax_document_shifted": math.exp(2 * 10.5),
        "softmax_largest_known": 1 / (3 * math.sqrt(6)),
    }


def _strategies() -> dict[str, Any]:
    """Solve the document's own problem, Σ κ·2^(−b) under a budget, by its strategies and exactly."""
    draw, bits = np.random.default_rng(0), np.arange(2, 17)
    worst: dict[str, float] = {}
    for _ in range(20):
        kappa, weights = np.exp(draw.normal(1, 1.5, 12)), draw.integers(1_000, 1_000_000, 12)
        cost = Cost("bits", np.outer(weights, bits), int(6 * weights.sum()))
        problem = Problem(kappa[:, None] * 2.0**-bits, (cost,), weights=weights, widths=bits.astype(float))
        best = solve(problem).objective
        for name in ("proportional", "gradient", "greedy"):
            worst[name] = max(worst.get(name, 1.0), SOLVERS[name](problem).objective / best)
    best_bits = continuous_bits([1.0, 16.0], [1, 1], 6.0, base=2.0)
    return {
        **{f"{name}_over_exact": value for name, value in worst.items()},
        "best_bits_for_1_and_16": best_bits.tolist(),  # b ∝ log κ would give 0 and 12
    }


PARTS: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "mnist": perceptron,
    "times": times,
    "resnet": net_layers,
    "transformer": net_layers,
    "oracles": oracles,
}
