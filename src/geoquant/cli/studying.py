"""`geoquant study`: list experiments, run them, and read what came of them."""

from __future__ import annotations

import itertools
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from geoquant import progress
from geoquant.cli.app import app
from geoquant.cli.inputs import AsJson, say, show
from geoquant.cluster import Cluster
from geoquant.errors import StudyError
from geoquant.findings import StudyFindings, Verdict
from geoquant.models.zoo import NETS, Net
from geoquant.plan import align
from geoquant.report import Planned, write_site
from geoquant.study import (
    PRESETS,
    STUDIES,
    Preset,
    RunReport,
    Store,
    Study,
    Watcher,
    begun,
    fullest,
    gather,
    holds,
    run_study,
)

study_app = typer.Typer(no_args_is_help=True, help="Run the experiments of the sources, and read what came of them.")
app.add_typer(study_app, name="study")

ALL = "all"
Output = Annotated[Path, typer.Option(help="Folder of the results: a folder for each study, a file for each cell.")]
PresetOption = Annotated[
    str, typer.Option(help="quick (minutes on two cores), laptop (the sources' scale), full (wants a GPU).")
]
FOLDER = Path("geoquant-studies")
SITE = Path("geoquant-site")


@study_app.command("list")
def list_command(output: Output = FOLDER, as_json: AsJson = False) -> None:
    """List the studies, and how many of their cells are done.

    Example: `geoquant study list`
    """
    documents = [_listed(STUDIES[name], output) for name in STUDIES.names()]
    rows: list[tuple[str, ...]] = [("study", *PRESETS, "title")]
    for one in documents:
        done = [f"{one['cells'][preset]['done']}/{one['cells'][preset]['all']}" for preset in PRESETS]
        rows.append((one["name"], *done, one["title"]))
    text = align(rows, (False, True, True, True, False))
    show(f"{text}\n\ncells done in {output}; run them with `geoquant study run NAME`", {"studies": documents}, as_json)


def _listed(study: Study, output: Path) -> dict[str, Any]:
    store, cells = Store(output), {}
    for preset in PRESETS:
        grid = study.grid(preset)
        found = store.read_all(grid).values()
        counts = {status: sum(one.status == status for one in found) for status in ("done", "failed")}
        cells[preset] = {"all": len(grid), **counts}
    facts = {name: getattr(study, name) for name in ("name", "title", "source", "question", "version")}
    return {**facts, "cells": cells}


@study_app.command("nets")
def nets_command(as_json: AsJson = False) -> None:
    """List the nets of the sources, each under a name of its own, with widths and size.

    Example: `geoquant study nets`
    """
    rows = [("net", "called", "source", "data", "parameters", "widths")]
    for net in NETS.values():
        rows.append((net.name, net.called, net.source, net.data, f"{net.parameters:,}", _widths(net)))
    notes = [f"{net.name}: {net.note}" for net in NETS.values() if net.note]
    text = align(rows, (False, False, False, False, True, False))
    show("\n".join([text, "", *notes]), {"nets": [asdict(net) for net in NETS.values()]}, as_json)


def _widths(net: Net) -> str:
    """Return the widths with repetitions counted, such as ``784-256-10`` or ``3-16×7-10``."""
    groups = [(width, len(list(same))) for width, same in itertools.groupby(net.widths)]
    return "-".join(f"{width}×{count}" if count > 1 else str(width) for width, count in groups)


@study_app.command("run")
def run_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A study of `geoquant study list`, or `all`.")],
    preset: PresetOption = "quick",
    jobs: Annotated[int, typer.Option(min=1, help="Processes, of one thread each; workers of a local Ray.")] = 1,
    ray: Annotated[
        str | None, typer.Option(help="Run on a Ray cluster: its address, or `local` to start one here.")
    ] = None,
    retry: Annotated[bool, typer.Option(help="Run cells again that failed.")] = False,
    only: Annotated[str, typer.Option(help="A regular expression that the label of a cell must hold.")] = "",
    output: Output = FOLDER,
    as_json: AsJson = False,
) -> None:
    """Run the cells of a study that have no result yet.

    Results are written as they come, so an interrupted run goes on where it was. What failed is kept with its error and
    stays until `--retry`. A cell is known by its configuration: a changed one runs anew, the others keep their results.

    Examples: `geoquant study run digits-depth --jobs 2`

    `geoquant study run all --preset laptop --ray local --jobs 4 --output results/`

    `geoquant study run digits-depth --only "seed=0 layer=head"`
    """
    chosen, reports = _preset(preset), []
    studies = _chosen(name, chosen, only)
    how: dict[str, Any] = {"jobs": jobs, "only": only, "retry": retry, "watch": _teller()}
    with ExitStack() as stack:
        cluster = None if ray is None else stack.enter_context(Cluster(ray, jobs))
        stack.enter_context(progress.shown())
        advance = stack.enter_context(progress.task("studies", len(studies)))
        for study in studies:
            reports.append(run_study(study, chosen, output, cluster=cluster, **how))
            advance()
    for report in reports:
        for label, reason in report.failed:
            say(f"failed: {report.study} {label}: {reason}")
        for label, reason in report.unavailable:
            say(f"not run: {report.study} {label}: {reason}")
    document = {"preset": chosen, "output": str(output), "studies": [asdict(report) for report in reports]}
    show(_run_text(reports, output), document, as_json)
    if any(report.failed for report in reports):
        raise typer.Exit(1)


def _teller() -> Watcher | None:
    """Return what says a line for each cell, in a log, where no bar can be."""
    if sys.stderr.isatty():
        return None
    return lambda cell, outcome: say(f"{cell.study} {cell.label}: {outcome.status} in {outcome.seconds:.1f} s")


def _chosen(name: str, preset: Preset, only: str) -> list[Study]:
    """Return the study of that name, or all that have a cell that is meant."""
    if name != ALL:
        return [STUDIES[name]]
    found = [study for study in map(STUDIES.__getitem__, STUDIES.names()) if holds(study, preset, only)]
    if not found:
        raise StudyError(f"no cell of any study matches '{only}'; `geoquant study list` names the studies")
    return found


def _run_text(reports: list[RunReport], output: Path) -> str:
    rows = [("study", "run now", "done before", "failed", "not run", "seconds")]
    for one in reports:
        failed, unavailable = str(len(one.failed)), str(len(one.unavailable))
        rows.append((one.study, str(one.ran), str(one.skipped), failed, unavailable, f"{one.seconds:.1f}"))
    again = "\ncells that failed are kept with their errors; --retry runs them again"
    text = align(rows, (False, True, True, True, True, True)) + f"\n\nresults: {output.resolve()}"
    return text + (again if any(report.failed for report in reports) else "")


def _preset(word: str) -> Preset:
    for preset in PRESETS:
        if preset == word:
            return preset
    raise StudyError(f"there is no preset '{word}'; choose one of {', '.join(PRESETS)}")


@study_app.command("report")
def report_command(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Studies to report; all that have results if none.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Whose cells; of each study the fullest preset that has results if not given.")
    ] = None,
    site: Annotated[Path, typer.Option(help="Folder to write: index.html, and a folder for each study.")] = SITE,
    output: Output = FOLDER,
    as_json: AsJson = False,
) -> None:
    """Write a page for each study, and an index of all claims with what was measured and a verdict.

    Each page is one file that needs no network. Beside it lie its figures as PNG and its data as CSV and parquet.

    Examples: `geoquant study report`

    `geoquant study report digits-depth --preset quick --output results/ --site out/`
    """
    wanted = None if preset is None else _preset(preset)
    asked = [(study, _begun(study, wanted, output)) for study in map(STUDIES.__getitem__, names or STUDIES.names())]
    ready = [(study, found) for study, found in asked if found is not None]
    left = [study for study, found in asked if found is None]
    if left and (names or not ready):
        command = f"{left[0].command(wanted or 'quick')} --output {output}"
        raise StudyError(f"no cell of '{left[0].name}' is finished in {output}; run `{command}` first")
    with progress.shown():
        findings = [gather(study, found, output) for study, found in ready]
        planned = [Planned(study.name, study.title, study.question, study.command("quick")) for study in left]
        index = write_site(site, findings, planned)
    document = {
        "index": str(index),
        "studies": [
            {"name": one.name, "preset": one.preset, "claims": [asdict(claim) for claim in one.claims]}
            for one in findings
        ],
        "not_run": [study.name for study in left],
    }
    show(_report_text(findings, index), document, as_json)


def _begun(study: Study, preset: Preset | None, output: Path) -> Preset | None:
    """Return the preset to report, or None when no cell of it is finished."""
    if preset is None:
        return fullest(study, output)
    return preset if begun(study, preset, output) else None


def _report_text(findings: list[StudyFindings], index: Path) -> str:
    verdicts: tuple[str, ...] = get_args(Verdict)
    rows = [("study", "preset", "cells", *verdicts)]
    for one in findings:
        given = [claim.verdict for claim in one.claims]
        counts = [str(given.count(verdict)) for verdict in get_args(Verdict)]
        rows.append((one.name, one.preset, str(len(one.cells)), *counts))
    return f"{align(rows, (False, False, True, *(True for _ in verdicts)))}\n\nreport: {index.resolve()}"
