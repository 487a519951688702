"""`geoquant report` and `geoquant plan diff`: see what was measured and decided."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from geoquant import progress
from geoquant.basin import DIAGNOSIS_FILE, Diagnosis
from geoquant.cli.app import app, plan_app
from geoquant.cli.inputs import AsJson, NormalizeOption, Weights, fitting, read_batches, read_model, say, show
from geoquant.cli.measure import plan_document, split
from geoquant.errors import FileFormatError, GeoquantError
from geoquant.plan import Plan, diff_rows, diff_text, plan_text
from geoquant.recovery import TRACE_FILE, Trace
from geoquant.report import (
    Point,
    Waterfall,
    comparison_plans,
    measure_point,
    measure_waterfall,
    sweep,
    write_report,
)
from geoquant.report.labels import plan_labels
from geoquant.sensitivity import Profile

DEFAULT_BUDGETS = "2.5,3,3.5,4,5,6"


def read_evidence(path: Path) -> tuple[Profile, tuple[Plan, ...]]:
    """Read a profile (and the plan that was diagnosed beside it), or a plan and the profile that its evidence makes."""
    if path.name == "profile.json" or (path / "profile.json").exists():
        diagnosed = (path / DIAGNOSIS_FILE).exists() and (path / "plan.json").exists()
        return Profile.load(path), (Plan.load(path),) if diagnosed else ()
    plan = Plan.load(path)
    if plan.evidence is None:
        raise FileFormatError(f"{path} is a plan without evidence; make a report of the profile instead")
    table = plan.evidence.table
    profile = Profile(plan.inventory, table.grids, (table,), plan.evidence.data, plan.evidence.seed, (0.0,))
    return profile, (plan,)


def read_diagnoses(path: Path) -> tuple[Diagnosis, ...]:
    """Read the diagnosis that lies in the folder, if there is one."""
    return (Diagnosis.load(path),) if (path / DIAGNOSIS_FILE).exists() else ()


def waterfalls(model: nn.Module, plans: Sequence[Plan], batch: Any, inputs: int) -> tuple[Waterfall, ...]:
    """Measure the error tiers of each plan; say so where a model does not allow it."""
    found = []
    say(f"error tiers of {len(plans)} plans on {inputs} calibration samples; the bound of a deep net takes a while")
    for label, plan in zip(plan_labels(plans), plans, strict=True):
        try:
            found.append(measure_waterfall(model, plan, batch, label, inputs=inputs))
        except GeoquantError as error:
            say(f"no error tiers of {label}: {error}")
    return tuple(found)


@app.command("report")
def report_command(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A folder from `profile`, `diagnose` or `quantize`, or a plan.")
    ],
    output: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    model: Annotated[str | None, typer.Option(help="The model, to measure accuracy against bytes as well.")] = None,
    weights: Weights = None,
    data: Annotated[str | None, typer.Option(help="Evaluation data (test split), with --model.")] = None,
    normalize: NormalizeOption = None,
    images: Annotated[int | None, typer.Option(min=1, help="Evaluate on this many samples only.")] = None,
    budgets: Annotated[str, typer.Option(help="Average bits to compare at, with --model.")] = DEFAULT_BUDGETS,
    plan: Annotated[list[Path] | None, typer.Option(help="More plans to show (repeatable).")] = None,
    recovery: Annotated[
        Path | None, typer.Option(help="Folder that `recover` wrote, to show its course; PATH by default.")
    ] = None,
    tier_images: Annotated[
        int, typer.Option(min=0, help="Calibration samples for the error tiers of each plan, with --model; 0 for none.")
    ] = 2,
    as_json: AsJson = False,
) -> None:
    """Write one self-contained HTML page about a profile, a diagnosis or a plan, and the course of a recovery.

    With --model and --data, accuracy against bytes is measured on the test split, and the error tiers of each plan
    (error_bound, error_estimate, error_observed) on a few samples of the calibration split.

    Example: `geoquant report prof/ --model geoquant.models.zoo:resnet20_cifar10 --weights resnet20.safetensors
    --data cifar10 --normalize imagenet --images 2000 --output report.html`
    """
    profile, plans = read_evidence(path)
    plans += tuple(Plan.load(each) for each in plan or [])
    points: tuple[Point, ...] = ()
    falls: tuple[Waterfall, ...] = ()
    float_point = None
    if (model is None) != (data is None):
        raise typer.BadParameter("accuracy against bytes needs both --model and --data")
    if model is not None and data is not None:
        net = read_model(model, weights)
        batches = fitting(net, read_batches(data, "test", normalize, weights, None, images, model=net))
        chosen = comparison_plans(profile, [float(budget) for budget in split(budgets)])
        with progress.shown():
            points = sweep(net, chosen, batches)
            float_point = measure_point(net, None, batches, "float", "float32")
            if plans and tier_images:
                few = read_batches(data, "train", normalize, weights, tier_images, tier_images, profile.seed, net)
                falls = waterfalls(net, plans, few[0], tier_images)
    course = (recovery or path) / TRACE_FILE
    if recovery is not None and not course.exists():
        raise FileFormatError(f"{recovery} holds no {TRACE_FILE}; name the folder that `geoquant recover` wrote")
    target = write_report(
        output,
        f"geoquant: {path.resolve().name}",
        profile=profile,
        plans=plans,
        points=points,
        float_point=float_point,
        waterfalls=falls,
        diagnoses=read_diagnoses(path),
        trace=Trace.load(course) if course.exists() else None,
    )
    say(f"wrote {target}")
    show(str(target), {"path": str(target)}, as_json)


@plan_app.command("show")
def plan_show(path: Annotated[Path, typer.Argument(metavar="PLAN")], as_json: AsJson = False) -> None:
    """Print a plan as a table, with a reason for every layer.

    Example: `geoquant plan show plan.json`
    """
    plan = Plan.load(path)
    text, document = plan_text(plan), plan_document(plan, path)
    if plan.evidence is not None:
        document["reasons"] = dict(zip(plan.inventory.names, plan.evidence.reasons, strict=True))
        text += "\n\nreasons\n" + "\n".join(f"  {name}: {reason}" for name, reason in document["reasons"].items())
    show(text, document, as_json)


@plan_app.command("diff")
def plan_diff(
    first: Annotated[Path, typer.Argument(metavar="A")],
    second: Annotated[Path, typer.Argument(metavar="B")],
    as_json: AsJson = False,
) -> None:
    """Show which layers two plans treat differently.

    Example: `geoquant plan diff w3.json w4.json`
    """
    one, two = Plan.load(first), Plan.load(second)
    show(diff_text(one, two), {"layers": diff_rows(one, two)}, as_json)
