"""What did an experiment find: figures, tables and claims as plain data, for whoever draws them.

A study computes these values from its finished cells; a report draws them and knows nothing else about studies.
Nothing here computes or draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from geoquant.errors import StudyError

Verdict = Literal["holds", "fails", "partly", "not measured"]
FigureKind = Literal["lines", "scatter", "bars", "stacked", "heatmap"]
Value = float | int | str | None


@dataclass(frozen=True)
class Claim:
    """What somebody said, and what came of it.

    Attributes:
        claim: one sentence, in the words of its source where they are short enough.
        source: a heading of docs/sources.md, or a paper.
        measured: what was measured, with figures and their spread; why not, where nothing was.
        verdict: ``holds``, ``fails``, ``partly`` or ``not measured``.
        command: makes the figures again.

    Raises:
        StudyError: another verdict.

    >>> Claim("water is wet", "folklore", "3 of 3 hands", "holds", "touch it").verdict
    'holds'
    """

    claim: str
    source: str
    measured: str
    verdict: Verdict
    command: str

    def __post_init__(self) -> None:
        if self.verdict not in get_args(Verdict):
            raise StudyError(f"'{self.verdict}' is no verdict; expected one of {', '.join(get_args(Verdict))}")


@dataclass(frozen=True)
class Series:
    """One line, group of points or bars, or row of a heat map.

    Attributes:
        name: in the legend; the row's label in a heat map.
        x: numbers or categories.
        y: as many values; None leaves a gap. The colour in a heat map.
        spread: as many standard deviations, drawn as bars or a band; none when empty.
        notes: as many texts shown on hover; none when empty.

    Raises:
        StudyError: lengths differ.
    """

    name: str
    x: tuple[float | str, ...]
    y: tuple[float | None, ...]
    spread: tuple[float | None, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        lengths = {len(self.x), len(self.y), *(len(each) for each in (self.spread, self.notes) if each)}
        if len(lengths) > 1:
            raise StudyError(f"the series '{self.name}' has columns of {sorted(lengths)} values; expected equally many")


@dataclass(frozen=True)
class Figure:
    """What to draw.

    Attributes:
        name: unique in its study, of letters, digits and hyphens; the base of file names.
        kind: ``lines``, ``scatter``, ``bars`` (side by side), ``stacked`` (bars on each other), or ``heatmap``.
        title: one line.
        x, y: labels of the axes, with units.
        series: what is drawn.
        alt: what one sees in the figure, in words, for who cannot see it; with its main figures.
        colour: label of the colours of a heat map, with unit.
        log_x, log_y: logarithmic axes.
        note: shown below the figure.

    Raises:
        StudyError: another kind, or no words.
    """

    name: str
    kind: FigureKind
    title: str
    x: str
    y: str
    series: tuple[Series, ...]
    alt: str
    colour: str = ""
    log_x: bool = False
    log_y: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(FigureKind):
            raise StudyError(f"'{self.kind}' is no kind of figure; expected one of {', '.join(get_args(FigureKind))}")
        if not self.alt.strip():
            raise StudyError(f"the figure '{self.name}' says nothing to who cannot see it; give alt=")


@dataclass(frozen=True)
class Table:
    """Rows under named columns.

    Attributes:
        name: unique in its study, of letters, digits and hyphens.
        title: one line.
        columns: with units.
        rows: one value a column.
        note: shown below the table.

    Raises:
        StudyError: a row with another number of values.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        wrong = [row for row in self.rows if len(row) != len(self.columns)]
        if wrong:
            raise StudyError(
                f"a row of the table '{self.name}' has {len(wrong[0])} values under {len(self.columns)} columns"
            )


@dataclass(frozen=True)
class StudyFindings:
    """Everything that a report says about one study.

    Attributes:
        name, title, source, question: of the study.
        preset: ``quick``, ``laptop`` or ``full``.
        command: runs it again.
        claims, figures, tables: from the finished cells.
        cells: one row a finished cell: configuration and plain metrics, flat, for CSV and parquet.
        rows: tables that cells brought along, flat, each row with its cell's configuration; possibly empty.
        failed: label and error of every cell that failed.
        missing: label and reason of every cell that was not run.
        seconds: of all finished cells together.
        versions: of geoquant, torch and Python, each joined by commas where several took part.
        finished: dates of the first and the last cell, ISO 8601; empty texts without cells.
    """

    name: str
    title: str
    source: str
    question: str
    preset: str
    command: str
    claims: tuple[Claim, ...]
    figures: tuple[Figure, ...]
    tables: tuple[Table, ...]
    cells: tuple[Mapping[str, Any], ...]
    rows: tuple[Mapping[str, Any], ...]
    failed: tuple[tuple[str, str], ...]
    missing: tuple[tuple[str, str], ...]
    seconds: float
    versions: Mapping[str, str]
    finished: tuple[str, str]
