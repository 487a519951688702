"""`geoquant quantize --max-drop` and `--refine-plan`: plans that are tried before one is chosen; on which samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from geoquant import progress
from geoquant.cli.inputs import Source, say
from geoquant.errors import BudgetError, DataError
from geoquant.models import batch_size as count
from geoquant.models import take_inventory
from geoquant.plan import Budget, Plan
from geoquant.search import Within, allocate_within, pipeline, refine
from geoquant.sensitivity import (
    PREDICTORS,
    ModelOptGradient,
    Predictor,
    Profile,
    SampledPlans,
    default_predictors,
)

MaxDrop = Annotated[
    float | None,
    typer.Option(
        help="Instead of a budget: the smallest model found that loses at most so many points of accuracy, with a 95 % "
        "certificate on samples that took no part in the search."
    ),
]
SearchImages = Annotated[int, typer.Option(min=1, help="With --max-drop: samples that the search looks at.")]
CertifyImages = Annotated[int, typer.Option(min=2, help="With --max-drop: samples for the certificate.")]
CertifyOn = Annotated[
    str,
    typer.Option(
        help="With --max-drop: split of the certificate's samples. It speaks about data like them: if the model was "
        "trained on `train`, name a split that it has not seen."
    ),
]
RefinePlan = Annotated[
    int | None,
    typer.Option(
        "--refine-plan",
        min=1,
        help="Deploy up to so many plans near the chosen one and keep the one that diverges least from the float model "
        "on the calibration samples. Goes on from refinement.json in the output folder.",
    ),
]
STATE_FILE = "refinement.json"


def read_parts(
    source: Source, model: nn.Module, calibration: Sequence[Any], wanted: tuple[int, int], certify_on: str
) -> tuple[list[Any], list[Any]]:
    """Read the samples of the search and of the certificate, in whole batches after those of the calibration."""
    used = sum(count(batch) for batch in calibration)
    search, certify = wanted
    apart = certify_on != "train"
    whole = source.batch_size or max(count(batch) for batch in calibration)
    limit = used + whole + search + (0 if apart else certify + whole)
    rest = list(source.batches("train", model, limit))[len(calibration) :]
    chosen: list[Any] = []
    while rest and sum(count(batch) for batch in chosen) < search:
        chosen.append(rest.pop(0))
    if apart:
        rest = list(source.batches(certify_on, model, certify))
    sizes = [sum(count(batch) for batch in part) for part in (chosen, rest)]
    if 0 in sizes:
        raise DataError(
            f"{used} samples calibrate, which leaves {sizes[0]} for the search and {sizes[1]} for the certificate; "
            "give more data, fewer --images or --search-images, or another split for the certificate with --certify-on"
        )
    drawn = f"drawn with seed {source.seed}"
    say(
        f"calibration: {used} samples of train, {drawn}; search: the next {sizes[0]}; certificate: "
        + (f"{sizes[1]} of {certify_on}, {drawn}" if apart else f"the {sizes[1]} of train after those")
    )
    return chosen, rest


def plan_within(
    model: nn.Module,
    profile: Profile,
    calibration: Sequence[Any],
    parts: tuple[list[Any], list[Any]],
    points: float,
    recipe: dict[str, Any],
    constraints: dict[str, Any],
) -> Within:
    """Search and certify through the pipeline that deploys; no model is written without a certificate."""
    with progress.shown():
        found = allocate_within(
            model, profile, *parts, drop=points / 100, deploy=pipeline(model, calibration, **recipe), **constraints
        )
    say(str(found))
    if not found.certified:
        raise BudgetError(
            f"no model is certified to lose at most {points:g} points: the last of {len(found.failed) + 1} plans may "
            f"lose {100 * found.certificate.upper_bound:.3g} (from {found.certificate.samples} samples); allow "
            "more, or give more samples with --certify-images"
        )
    return found


def within_document(found: Within) -> dict[str, Any]:
    """Return search and certificate for `--json`."""
    trials = [
        {"average_bits": trial.plan.average_bits, "drop": trial.drop, "stderr": trial.stderr, "passed": trial.passed}
        for trial in found.trials
    ]
    return {"certificate": asdict(found.certificate), "search": trials}


def refine_plan(
    model: nn.Module,
    plan: Plan,
    calibration: Sequence[Any],
    evaluations: int,
    recipe: dict[str, Any],
    output: Path,
) -> Plan:
    """Refine through the pipeline that deploys, codes learned afterwards left out: they would take minutes each."""
    quick = {**recipe, "refine": "none"}
    label = ", ".join(f"{name}={value}" for name, value in sorted(quick.items()))
    with progress.shown():
        found = refine(
            model,
            plan,
            calibration,
            deploy=pipeline(model, calibration, **quick),
            evaluations=evaluations,
            state=output / STATE_FILE,
            label=label,
            seed=recipe["seed"],
        )
    say(str(found))
    return found.plan


def at_the_budget(
    model: nn.Module, names: Sequence[str], budget: Budget | None, calibration: Sequence[Any], recipe: dict[str, Any]
) -> tuple[str | Predictor, ...]:
    """Give the predictor that deploys whole plans the budget, and the pipeline that will deploy the one it leads to."""
    bits = None if budget is None else budget.average_bits
    if bits is None or SampledPlans.name not in names:
        return tuple(names)
    inventory, start = take_inventory(model), default_predictors(model)[0]
    deploy = pipeline(model, calibration, **{**recipe, "refine": "none"})
    mine = SampledPlans(
        bits,
        lambda grids: deploy(Plan(inventory, tuple(str(grid) for grid in grids))),
        prior=PREDICTORS[start] if start == ModelOptGradient.name else None,
        deploy_cost=1.0,
    )
    return tuple(mine if name == SampledPlans.name else name for name in names)
