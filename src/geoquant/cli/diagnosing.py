"""`geoquant diagnose`: will this plan survive rounding, and what helps if not?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from geoquant import progress
from geoquant.basin import Diagnosis, SliceSettings, diagnose
from geoquant.cli.app import app
from geoquant.cli.inputs import (
    AsJson,
    BatchSize,
    Data,
    Fold,
    Images,
    Model,
    NormalizeOption,
    Seed,
    Source,
    Task,
    Weights,
    Window,
    pairs,
    read_model,
    say,
    show,
)
from geoquant.cli.measure import AverageBits, Grids, grids_to_measure, measure, predictors_to_measure
from geoquant.plan import Budget, Plan, allocate, uniform_plan
from geoquant.report import line_png, plane_png
from geoquant.sensitivity import Profile, profile

PLAN_OPTIONS = "--average-bits, --plan or --grid"


@app.command("diagnose")
def diagnose_command(
    model: Model,
    data: Data,
    average_bits: AverageBits = None,
    plan: Annotated[Path | None, typer.Option(help="A plan, from `geoquant allocate` for example.")] = None,
    grid: Annotated[str | None, typer.Option(help="The same grid for every layer, such as int2 or ternary.")] = None,
    fix: Annotated[
        list[str] | None, typer.Option(help="With --grid: NAME=GRID for single layers or `re:` patterns (repeatable).")
    ] = None,
    tolerance: Annotated[float, typer.Option(help="Rise of the loss that is allowed, in nats per prediction.")] = 0.05,
    weights: Weights = None,
    normalize: NormalizeOption = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for diagnosis.json, plan.json, profile.json and pictures; for `geoquant report`."),
    ] = None,
    slices: Annotated[
        bool | None,
        typer.Option("--slices/--no-slices", help="Slice the loss along a line and a plane; with --output by default."),
    ] = None,
    images: Images = None,
    batch_size: BatchSize = None,
    task: Task = None,
    window: Window = None,
    grids: Grids = None,
    fold_batch_norm: Fold = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Predict, before anything is changed, what rounding does to a model and what would help.

    Verdicts: **ptq** (plain rounding keeps the loss within --tolerance), **better-rounding** (descent with corrected
    norms does), **qat** (training with quantized weights should), **infeasible** (a few epochs are not expected to).
    With it come the width of the low-loss basin around the float weights, in grid steps, the codewords that were tried,
    and the layers to train. With labels the loss is cross-entropy, without them the divergence from the float model.
    Half of the samples make codewords, the other half judges them.

    Example: `geoquant diagnose geoquant.models.zoo:resnet20_cifar10 --weights resnet20.safetensors
    --data cifar10 --normalize imagenet --grid int2 --output diagnosis/`

    The basin is narrow when its radius is below 1 along the displacement: then the rounded point lies outside.
    """
    if sum(each is not None for each in (average_bits, plan, grid)) != 1:
        raise typer.BadParameter(f"say what to diagnose: one of {PLAN_OPTIONS}")
    if fix and grid is None:
        raise typer.BadParameter("--fix goes with --grid; a plan has its own grids")
    net = read_model(model, weights, fold_batch_norm, task)
    batches = Source(data, normalize, weights, batch_size, seed, window).calibration(net, images)
    chosen, evidence = _plan(net, batches, average_bits, plan, grid, fix, grids, seed)
    wanted = output is not None if slices is None else slices
    with progress.shown():
        found = diagnose(
            net, chosen, batches, tolerance=tolerance, slices=SliceSettings(plane=11) if wanted else None, seed=seed
        )
    document: dict[str, Any] = {**found.to_json(), "constructive": vars(found.constructive)}
    if output is not None:
        document["paths"] = [str(path) for path in _write(net, batches, found, chosen, evidence, output)]
        say(f"wrote {', '.join(document['paths'])}")
    show(str(found), document, as_json)


def _plan(
    model: nn.Module,
    batches: Sequence[Any],
    average_bits: float | None,
    path: Path | None,
    grid: str | None,
    fix: list[str] | None,
    grids: str | None,
    seed: int,
) -> tuple[Plan, Profile | None]:
    """Return the plan to diagnose, and the profile that it was solved from, if that was measured here."""
    if path is not None:
        return Plan.load(path), None
    if grid is not None:
        return uniform_plan(model, grid, pairs(fix or [], "fixed grid")), None
    budget = Budget(average_bits=average_bits)
    menu, predictors = grids_to_measure(grids, model, budget), predictors_to_measure(None, model)
    result = measure(model, batches, menu, predictors, None, None, seed)
    return allocate(result, budget), result


def _write(
    model: nn.Module,
    batches: Sequence[Any],
    found: Diagnosis,
    plan: Plan,
    evidence: Profile | None,
    folder: Path,
) -> list[Path]:
    """Write everything that a report wants; a plan without evidence gets the error of its weights as one."""
    if evidence is None:
        names = tuple(dict.fromkeys(plan.names))
        evidence = profile(model, batches, grids=names, predictors=["weight_error"], seed=found.seed)
    paths = [found.save(folder), plan.save(folder), evidence.save(folder)]
    paths += [line_png(line, folder / f"slice_{index}.png") for index, line in enumerate(found.lines)]
    return paths + [plane_png(plane, folder / f"plane_{index}.png") for index, plane in enumerate(found.planes)]
