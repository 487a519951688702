"""From cells on disk to what a report says about a study."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from geoquant.errors import StudyError
from geoquant.findings import StudyFindings
from geoquant.study.declaration import PRESETS, Cell, Preset, Study
from geoquant.study.results import Results
from geoquant.study.store import Outcome, Store


def results(study: Study, preset: Preset, folder: Path | str) -> Results:
    """Return the finished cells of a preset."""
    return _results(study, preset, *_read(study, preset, folder))


def fullest(study: Study, folder: Path | str) -> Preset | None:
    """Return the largest preset of which a cell that belongs to no smaller one is finished; None when nothing is.

    Cells that presets share speak for the smallest of them.
    """
    store, found, known = Store(Path(folder)), None, set[str]()
    for preset in PRESETS:
        own = [cell for cell in study.grid(preset) if cell.key not in known]
        known |= {cell.key for cell in own}
        if _any_done(store, own):
            found = preset
    return found


def begun(study: Study, preset: Preset, folder: Path | str) -> bool:
    """Say whether a cell of a preset is finished, reading no more of them than that takes."""
    return _any_done(Store(Path(folder)), study.grid(preset))


def gather(study: Study, preset: Preset, folder: Path | str) -> StudyFindings:
    """Return everything that a report says about a study, from the cells that are there.

    Raises:
        StudyError: no cell of the preset is finished.
    """
    cells, outcomes = _read(study, preset, folder)
    found = _results(study, preset, cells, outcomes)
    done = {key: outcome for key, outcome in outcomes.items() if outcome.status == "done"}
    if not done:
        raise StudyError(f"no cell of '{study.name}' is finished in {folder}; run `{study.command(preset)}` first")
    labels = {cell.key: cell.label for cell in cells}
    dates = sorted(outcome.date for outcome in done.values())
    return StudyFindings(
        study.name,
        study.title,
        study.source,
        study.question,
        preset,
        study.command(preset),
        tuple(claim(found) for claim in study.claims),
        tuple(figure for draw in study.figures if (figure := draw(found)) is not None),
        tuple(table(found) for table in study.tables),
        tuple(_flat(cell, done[cell.key]) for cell in cells if cell.key in done),
        tuple(_rows(cells, done)),
        tuple((labels[key], f"{o.error.kind}: {o.error.message}") for key, o in outcomes.items() if o.error),
        tuple((cell.label, _reason(study, cell)) for cell in cells if cell.key not in outcomes),
        sum(outcome.seconds for outcome in done.values()),
        _versions(done.values()),
        (dates[0], dates[-1]),
    )


def _any_done(store: Store, cells: Iterable[Cell]) -> bool:
    outcomes = (store.read(cell) for cell in cells)
    return any(outcome is not None and outcome.status == "done" for outcome in outcomes)


def _read(study: Study, preset: Preset, folder: Path | str) -> tuple[tuple[Cell, ...], dict[str, Outcome]]:
    cells = study.grid(preset)
    return cells, Store(Path(folder)).read_all(cells)


def _results(study: Study, preset: Preset, cells: tuple[Cell, ...], outcomes: dict[str, Outcome]) -> Results:
    done = tuple(
        outcomes[cell.key].result(cell)
        for cell in cells
        if cell.key in outcomes and outcomes[cell.key].status == "done"
    )
    return Results(done, study.command(preset), preset, len(cells) - len(done))


def _reason(study: Study, cell: Cell) -> str:
    return study.unavailable(cell.configuration) or "not run yet"


def _flat(cell: Cell, outcome: Outcome) -> Mapping[str, Any]:
    """Return a cell as one row: its configuration and the metrics that are single values."""
    single = {name: value for name, value in outcome.metrics.items() if not isinstance(value, (list, dict))}
    return {**_columns(cell.configuration), **single, "seconds": outcome.seconds, "key": cell.key}


def _rows(cells: Iterable[Cell], done: Mapping[str, Outcome]) -> Iterable[Mapping[str, Any]]:
    for cell in cells:
        if cell.key in done:
            for row in done[cell.key].rows:
                yield {**_columns(cell.configuration), **row}


def _columns(configuration: Mapping[str, Any]) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, (list, dict)) else value for name, value in configuration.items()}


def _versions(outcomes: Iterable[Outcome]) -> dict[str, str]:
    found: dict[str, set[str]] = {}
    for outcome in outcomes:
        for name, version in outcome.versions.items():
            found.setdefault(name, set()).add(version)
    return {name: ", ".join(sorted(versions)) for name, versions in found.items()}
