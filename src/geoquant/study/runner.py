"""Running a study: what is done is left alone, what failed waits to be asked for, and what comes is written at once.

A cell is finished when its file is there. So a run may be killed at any moment and started again, with more workers or
fewer, on one machine or many. Cells that cannot run here (a data set is missing) are named with their reason.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from geoquant import progress
from geoquant.cluster import Cluster
from geoquant.errors import StudyError
from geoquant.study.declaration import Cell, Preset, Study
from geoquant.study.executing import execute
from geoquant.study.on_cluster import on_cluster
from geoquant.study.processes import in_processes
from geoquant.study.store import Outcome, Store

Watcher = Callable[[Cell, Outcome], None]


@dataclass(frozen=True)
class RunReport:
    """What a run did.

    Attributes:
        study: its name.
        ran: how many cells were run, failed ones included.
        skipped: how many were done before.
        failed: label and error of cells that failed, now or before.
        unavailable: label and reason of cells that cannot run here.
        seconds: wall time of the run.
    """

    study: str
    ran: int
    skipped: int
    failed: tuple[tuple[str, str], ...]
    unavailable: tuple[tuple[str, str], ...]
    seconds: float


def run_study(
    study: Study,
    preset: Preset,
    folder: Path | str,
    *,
    jobs: int = 1,
    cluster: Cluster | None = None,
    only: str = "",
    retry: bool = False,
    watch: Watcher | None = None,
) -> RunReport:
    """Run the cells of a preset that have no result yet.

    Args:
        study: what to run.
        preset: which of its grids.
        folder: where results go, ``FOLDER/STUDY/KEY.json``.
        jobs: 1 works in this process; more starts as many processes with one thread each.
        cluster: an entered Ray cluster, instead of `jobs`.
        only: a regular expression that the label of a cell must hold.
        retry: run failed cells again.
        watch: called with every cell as it finishes, after it was written.

    Raises:
        StudyError: `only` matches nothing or is no regular expression, or another process works on the study here.
        OutputError: the folder cannot be written.
    """
    if jobs < 1:
        raise StudyError(f"jobs={jobs} leaves nobody to work; expected at least 1")
    start, store = time.perf_counter(), Store(Path(folder))
    chosen = matching(study.grid(preset), only)
    with store.working(study.name):
        before = store.read_all(chosen)
        todo, unavailable = _left(study, chosen, before, retry)
        failed = {cell.key: _failure(cell, before[cell.key]) for cell in chosen if _has_failed(before.get(cell.key))}
        working = closing(_outcomes(study, todo, jobs, cluster))  # which ends workers, whatever happens
        with progress.task(study.name, len(todo)) as advance, working as outcomes:
            for cell, outcome in outcomes:
                store.write(cell, outcome)
                failed.pop(cell.key, None)
                if _has_failed(outcome):
                    failed[cell.key] = _failure(cell, outcome)
                if watch is not None:
                    watch(cell, outcome)
                advance()
    skipped = sum(outcome.status == "done" for outcome in before.values())
    seconds = time.perf_counter() - start
    return RunReport(study.name, len(todo), skipped, tuple(failed.values()), tuple(unavailable), seconds)


def holds(study: Study, preset: Preset, only: str) -> bool:
    """Say whether any cell of a preset is meant by the regular expression `only`.

    Raises:
        StudyError: it is no regular expression.
    """
    pattern = _pattern(only)
    return any(pattern.search(cell.label) for cell in study.grid(preset))


def matching(cells: Sequence[Cell], only: str) -> tuple[Cell, ...]:
    """Return the cells whose label holds the regular expression.

    Raises:
        StudyError: there is none, or it is no regular expression.
    """
    pattern = _pattern(only)
    found = tuple(cell for cell in cells if pattern.search(cell.label))
    if not found:
        raise StudyError(f"no cell of '{cells[0].study}' matches '{only}'; the first is '{cells[0].label}'")
    return found


def _pattern(only: str) -> re.Pattern[str]:
    try:
        return re.compile(only)
    except re.error as error:
        raise StudyError(f"'{only}' is no regular expression: {error}") from error


def _left(
    study: Study, cells: Sequence[Cell], before: dict[str, Outcome], retry: bool
) -> tuple[list[Cell], list[tuple[str, str]]]:
    """Return the cells to run, and those that cannot run here with their reasons."""
    todo, unavailable = [], []
    for cell in cells:
        outcome = before.get(cell.key)
        if outcome is not None and (outcome.status == "done" or not retry):
            continue
        reason = study.unavailable(cell.configuration)
        if reason is None:
            todo.append(cell)
        else:
            unavailable.append((cell.label, reason))
    return todo, unavailable


def _has_failed(outcome: Outcome | None) -> bool:
    return outcome is not None and outcome.status == "failed"


def _failure(cell: Cell, outcome: Outcome) -> tuple[str, str]:
    assert outcome.error is not None
    return cell.label, f"{outcome.error.kind}: {outcome.error.message}"


def _outcomes(
    study: Study, cells: Sequence[Cell], jobs: int, cluster: Cluster | None
) -> Generator[tuple[Cell, Outcome]]:
    if cluster is not None and cells:
        yield from on_cluster(study, cells, cluster)
    elif jobs > 1:
        yield from in_processes(study.run, cells, jobs)
    else:
        yield from ((cell, execute(study.run, cell)) for cell in cells)
