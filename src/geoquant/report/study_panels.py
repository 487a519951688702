"""What does a page say about a study's figures, tables and claims, in words and numbers?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

from geoquant.findings import Claim, Figure, Series, StudyFindings, Table, Value, Verdict
from geoquant.report import tables
from geoquant.report.labels import counted, number
from geoquant.report.pages import File
from geoquant.report.panels import Panel
from geoquant.report.study_figures import categories, plot

MOST_ROWS = 400  # of a table on a page; the file beside it holds all
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
_SAID: dict[Verdict, tuple[str, str]] = {  # of one claim, of several
    "holds": ("holds", "hold"),
    "fails": ("fails", "fail"),
    "partly": ("holds in part", "hold in part"),
    "not measured": ("was not measured", "were not measured"),
}


def figure_panel(figure: Figure, files: Sequence[File]) -> Panel:
    """Show a figure, with its words and its numbers."""
    spread = "Bars are one standard deviation." if any(any(series.spread) for series in figure.series) else ""
    down = f"Down: {figure.y}." if figure.kind == "heatmap" and figure.y else ""
    return Panel(
        f"figure-{figure.name}",
        figure.title,
        " ".join(part for part in (figure.note, spread, down) if part),
        figure.alt,
        plot(figure),
        (shortened(figure_table(figure)),),
        files=tuple(files),
    )


def figure_table(figure: Figure) -> tables.Table:
    """Give the figure's numbers: a column a series where series share places, else a row a point."""
    if figure.kind == "heatmap":
        return _across(figure)
    if figure.kind == "scatter" or any(len(set(each.x)) < len(each.x) for each in figure.series):
        return _one_by_one(figure)
    columns = [dict(zip(map(str, series.x), map(value_cell, *_pairs(series)), strict=True)) for series in figure.series]
    places = dict.fromkeys((str(x), x) for series in figure.series for x in series.x)
    ordered = list(places) if categories(figure) else sorted(places, key=lambda one: float(one[1]))
    rows = tuple((value_cell(x), *(column.get(key, value_cell(None)) for column in columns)) for key, x in ordered)
    names = (figure.x or "x", *(series.name for series in figure.series))
    numeric = (categories(figure) is None, *(True for _ in figure.series))
    return tables.Table(f"{figure.title}: {figure.y}", names, numeric, rows)


def _pairs(series: Series) -> tuple[Sequence[float | None], Sequence[float | None]]:
    return series.y, series.spread or (None,) * len(series.y)


def value_cell(value: Value, deviation: float | None = None) -> tables.Cell:
    """Return a cell that sorts by its value: numbers as numbers, texts as texts."""
    text = number(value, deviation)
    return tables.Cell(text) if isinstance(value, str) else tables.number_cell(value, text)


def _across(figure: Figure) -> tables.Table:
    places = list(dict.fromkeys(x for series in figure.series for x in series.x))
    rows = []
    for series in figure.series:
        found = dict(zip(series.x, map(value_cell, *_pairs(series)), strict=True))
        rows.append((tables.Cell(series.name), *(found.get(x, value_cell(None)) for x in places)))
    names = (figure.y or "row", *(number(x) for x in places))
    return tables.Table(f"{figure.title}: {figure.colour}", names, (False, *(True,) * len(places)), tuple(rows))


def _one_by_one(figure: Figure) -> tables.Table:
    noted = any(series.notes for series in figure.series)
    rows = []
    for series in figure.series:
        for index, (x, y, spread) in enumerate(zip(series.x, *_pairs(series), strict=True)):
            note = (tables.Cell(series.notes[index] if series.notes else ""),) if noted else ()
            rows.append((tables.Cell(series.name), value_cell(x), value_cell(y, spread), *note))
    names = ("series", figure.x or "x", figure.y or "y", *(["note"] if noted else []))
    numeric = (False, categories(figure) is None, True, False)[: len(names)]
    return tables.Table(figure.title, names, numeric, tuple(rows))


def shortened(table: tables.Table) -> tables.Table:
    """Keep the first rows of a long table, and say so."""
    if len(table.rows) <= MOST_ROWS:
        return table
    caption = f"{table.caption} (the first {MOST_ROWS} of {len(table.rows):,} rows; the CSV file holds all)"
    return replace(table, caption=caption, rows=table.rows[:MOST_ROWS])


def study_table(table: Table) -> tables.Table:
    """Show a study's own table."""
    rows = tuple(tuple(value_cell(value) for value in row) for row in table.rows)
    numeric = tuple(
        all(not isinstance(row[column], str) for row in table.rows) and bool(table.rows)
        for column in range(len(table.columns))
    )
    return shortened(tables.Table(table.title, table.columns, numeric, rows))


@dataclass(frozen=True)
class ClaimRow:
    """A claim as pages show it: what was measured in parts, `rank` to sort by, and the page of its study, if any."""

    claim: str
    source: str
    parts: tuple[str, ...]
    verdict: Verdict
    command: str
    rank: int
    study: str
    page: str


@dataclass(frozen=True)
class Tally:
    """How often a verdict was given."""

    verdict: Verdict
    count: int


def claim_rows(study: StudyFindings, page: str = "") -> list[ClaimRow]:
    """Return the claims of a study, those that were measured first."""
    ordered = sorted(study.claims, key=lambda claim: claim.verdict == "not measured")
    return [
        ClaimRow(
            claim.claim,
            claim.source,
            tuple(claim.measured.split("; ")),
            claim.verdict,
            claim.command,
            VERDICTS.index(claim.verdict),
            study.name,
            page,
        )
        for claim in ordered
    ]


def tally(claims: Sequence[Claim]) -> tuple[Tally, ...]:
    """Count the verdicts that occur."""
    counts = Counter(claim.verdict for claim in claims)
    return tuple(Tally(verdict, counts[verdict]) for verdict in VERDICTS if counts[verdict])


def summary(claims: Sequence[Claim]) -> str:
    """Say in one sentence what came of the claims.

    >>> made = [Claim("a", "s", "m", verdict, "c") for verdict in ("holds", "fails", "fails")]
    >>> summary(made)
    'Of 3 claims: 1 holds, 2 fail.'
    >>> summary([])
    'Nothing was claimed here.'
    """
    if not claims:
        return "Nothing was claimed here."
    parts = [f"{each.count} {_SAID[each.verdict][each.count > 1]}" for each in tally(claims)]
    return f"Of {counted(len(claims), 'claim')}: {', '.join(parts)}."
