"""One net on one grid: rounded, reconstructed, trained on, trained on the grid, and diagnosed beforehand.

Losses are cross-entropies on test data, in nats. Everything trains for the same steps on the same batches with the same
optimizer, without a teacher, so that float training and training on the grid minimise the same loss. A fixed budget
says what this budget recovers, not what can be recovered. The diagnosis looks at calibration data alone.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from geoquant.basin import Bowl, Codewords, Landscape, diagnose, entry_bound, float_training, straight_through
from geoquant.evaluation import evaluate
from geoquant.plan import Plan, uniform_plan
from geoquant.quantize import quantize
from geoquant.recovery import Objective, Settings, recover_, training_mode_
from geoquant.storage import digest
from geoquant.study.cases import Case, case_of
from geoquant.study.trained import kept_

TOLERANCE = 0.05
"""The rise of the loss in nats that counts as staying in the basin."""


def run(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Measure a net on a grid, or the toy that the theory is about."""
    return toy() if configuration["part"] == "toy" else on_grid(configuration)


def on_grid(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Return the losses of one net on one grid, the course of training, and what was predicted."""
    case = case_of(configuration)
    plan = uniform_plan(case.model, configuration["grid"])
    further = _trained_on(case, configuration)
    rounded = quantize(case.model, plan, case.calibration, rounding="nearest", norms="none")
    trained = copy.deepcopy(rounded)
    rates = {"rate": case.rate, "step_rate": 1e-3, "free_rate": case.rate, "seed": configuration["seed"]}
    found = recover_(trained, plan, case.source, steps=configuration["steps"], method="ste", **rates)
    rows = [
        {"step": each.step, "latent": each.latent_loss, "deployed": each.quantized_loss, "inward": each.inward_share}
        for each in found.trace.points
    ]
    losses = {
        "float": _loss(case.model, case),
        "nearest": _loss(rounded, case),
        "gptq": _loss(quantize(case.model, plan, case.calibration, rounding="gptq"), case),
        "descent": _loss(quantize(case.model, plan, case.calibration), case),
        "float_further_nearest": _loss(
            quantize(further, plan, case.calibration, rounding="nearest", norms="none"), case
        ),
        "float_further_gptq": _loss(quantize(further, plan, case.calibration, rounding="gptq"), case),
        "trained": _loss(trained, case),
    }
    return {**losses, "average_bits": plan.average_bits, **_predicted(case, plan, configuration), "rows": rows}


def _loss(model: nn.Module, case: Case) -> float:
    return evaluate(model, case.test).cross_entropy.value


def _trained_on(case: Case, configuration: Mapping[str, Any]) -> nn.Module:
    """Return the float net after as many steps as training on the grid takes, from the cache where it is there."""
    model = copy.deepcopy(case.model)
    recipe = {name: value for name, value in configuration.items() if name not in ("grid", "diagnose")}
    key = f"{configuration['net']}-further-{digest(recipe)[:16]}"
    kept_(model, key, lambda: _train_float_(model, case, configuration["steps"], configuration["seed"]))
    return model.eval()


def _train_float_(model: nn.Module, case: Case, steps: int, seed: int) -> None:
    """Train as `recover_` would without rounding."""
    settings = Settings(steps=steps, rate=case.rate, seed=seed)
    optimizer, objective = torch.optim.AdamW(model.parameters(), lr=case.rate, weight_decay=0), Objective()
    training_mode_(model, settings)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = case.rate * settings.share(step, steps)
        optimizer.zero_grad(set_to_none=True)
        objective(model, case.source.batch(*divmod(step, len(case.source)))).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _predicted(case: Case, plan: Plan, configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the diagnosis says on calibration data."""
    samples = configuration["diagnose"]
    if not samples:
        return {}
    found = diagnose(
        case.model, plan, case.calibration, tolerance=TOLERANCE, samples=samples, seed=configuration["seed"]
    )
    evidence = found.evidence
    return {
        "predicted": found.verdict,
        "width_in_steps": evidence.width,
        "random_width_in_steps": evidence.random_width,
        "leaving": evidence.leaving,
    }


def toy() -> dict[str, Any]:
    """Run the straight river, where everything is known exactly, and its negative twins."""
    river, grid, start, rate = Landscape(), Codewords(-0.2, 0.7), 0.3, 0.02
    training = straight_through(river, grid, start, rate=rate, steps=2000)
    plain = float_training(river, grid, start, rate=rate, steps=2000)
    coarse = straight_through(river, Codewords(0.5, 5), start, rate=rate, steps=2000)
    between = straight_through(Bowl(0.25), Codewords(0, 1), 0.5, rate=0.01, steps=20_000)
    return {
        "rounded_loss": float(river.loss(0, grid.nearest(start))),
        "other_codeword_loss": float(river.loss(0, grid.around(start)[0])),
        "second_order_sees": float(river.second_order_damage(start, grid.nearest(start))),
        "entry": training.entry(river),
        "entry_bound": entry_bound(0.4, 1, 1, training.rounding_offset(), rate, start),
        "stays": training.stays(river),
        "float_entry": plain.entry(river),
        "entry_without_codeword_inside": coarse.entry(river),
        "share_on_upper_codeword": between.share(1),
        "expected_share": 0.25,
    }
