"""`geoquant quantize FOLDER --stream`: a model that need not fit into memory, block after block."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from geoquant import progress
from geoquant.cli.inputs import CALIBRATION_WINDOWS, Source, say
from geoquant.cli.measure import make_budget, split
from geoquant.models import is_pretrained_folder
from geoquant.plan import Plan, allocate
from geoquant.sensitivity import DEFAULT_GRIDS
from geoquant.streaming import Checkpoint, make_skeleton, profile_folder, quantize_folder

Stream = Annotated[
    bool,
    typer.Option(
        "--stream",
        help="Never hold the model whole: read weights from the mapped files of a Hugging Face folder, one block at a "
        "time, and go on where an earlier run stopped. A budget is then met by weight error; norms and activations "
        "stay as they are.",
    ),
]


def refuse(folder: str, **given: Any) -> None:
    """Refuse options that a streamed run does not know, by the words of the command line."""
    wrong = [name for name, value in given.items() if value not in (None, False)]
    if wrong:
        raise typer.BadParameter(f"--stream goes without --{wrong[0].replace('_', '-')}: it needs the model in memory")
    if not is_pretrained_folder(folder):
        raise typer.BadParameter(f"--stream reads a Hugging Face folder; {folder} has no config.json")


def stream_plan(
    folder: str,
    task: str | None,
    plan: Path | None,
    grids: str | None,
    limits: Sequence[Any],
    constraints: dict[str, Any],
) -> Plan:
    """Read the plan that was given, or measure weight errors and solve."""
    if plan is not None:
        if any(limit is not None for limit in limits):
            raise typer.BadParameter("give --plan or a budget, not both")
        return Plan.load(plan)
    budget = make_budget(*limits)
    with progress.shown():
        profile = profile_folder(folder, grids=DEFAULT_GRIDS if grids is None else split(grids), task=task)
    say(f"measured weight errors of {len(profile.inventory.sites)} layers in {profile.seconds[0]:.0f} s")
    return allocate(profile, budget, **constraints)


def stream_model(
    folder: str,
    plan: Plan,
    output: Path,
    source: Source | None,
    *,
    rounding: str | None,
    task: str | None,
    samples: int | None,
    seed: int,
) -> Path:
    """Quantize the folder by `plan`; return the path of the artifact."""
    batches = None
    if source is not None:
        with Checkpoint(folder) as weights:
            model = make_skeleton(folder, weights, task).model
        batches = source.batches("train", model, samples or CALIBRATION_WINDOWS)
    with progress.shown():
        done = quantize_folder(folder, plan, output, batches, rounding=rounding, task=task, seed=seed)
    if done.unseen:
        say(f"rounded without their inputs, which no batch showed: {', '.join(done.unseen)}")
    kept = sum(seconds == 0 for seconds in done.seconds)
    each = sum(done.seconds) / max(len(done.seconds) - kept, 1)
    said = f" ({kept} of them from an earlier run)" if kept else ""
    say(f"{len(done.seconds)} blocks{said}, {each:.1f} s each")
    say(f"wrote {done.path}, {done.path.stat().st_size:,} bytes")
    return done.path
