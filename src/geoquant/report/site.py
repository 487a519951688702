"""And what came of it? A folder with a page for every study, and an index of all claims with their verdicts.

The folder can be copied anywhere: ``index.html``, ``claims.csv`` and ``claims.parquet``, and for each study a folder
with its page, each figure as PNG and CSV, each table as CSV, and its cells as CSV and parquet. The same findings give
the same bytes. What lies in the folder from before and is not written again stays.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geoquant import storage
from geoquant.errors import StudyError
from geoquant.findings import StudyFindings
from geoquant.progress import task
from geoquant.report.labels import counted, duration
from geoquant.report.pages import Fact, File, fill
from geoquant.report.study_data import (
    claims_frame,
    figure_frame,
    rows_frame,
    table_frame,
    write_csv,
    write_parquet,
)
from geoquant.report.study_figures import known
from geoquant.report.study_page import render_study
from geoquant.report.study_panels import claim_rows, summary, tally
from geoquant.report.study_png import figure_png

TITLE = "What came of it"
_NAME = re.compile(r"[A-Za-z0-9]+(-[A-Za-z0-9]+)*")
_INDEX = "../index.html"


@dataclass(frozen=True)
class Planned:
    """A study without results.

    Attributes:
        name, title, question: of the study.
        command: runs it.
    """

    name: str
    title: str
    question: str
    command: str


def write_site(
    folder: Path | str, studies: Sequence[StudyFindings], planned: Sequence[Planned] = (), title: str = TITLE
) -> Path:
    """Write a page for each study, the files beside it, and the index; return the path of the index.

    Args:
        folder: made where it does not exist.
        studies: what was found; the index keeps their order.
        planned: studies to name as not run yet.
        title: of the index.

    Raises:
        StudyError: a study, figure or table has a name that names no file, or shares it with another.
        OutputError: a file cannot be written.
    """
    target = Path(folder)
    _check("the report", [study.name for study in studies])
    for study in studies:
        _check(study.name, [figure.name for figure in study.figures])
        _check(study.name, [table.name for table in study.tables])
    with task("writing the report", len(studies) + 1) as advance:
        for study in studies:
            _write_study(target / study.name, study)
            advance()
        claims = claims_frame([(study.name, claim) for study in studies for claim in study.claims])
        write_csv(target / "claims.csv", claims)
        write_parquet(target / "claims.parquet", claims)
        storage.write_text(target / "index.html", render_index(studies, planned, title))
        advance()
    return target / "index.html"


def _check(whole: str, names: Sequence[str]) -> None:
    """Refuse names that are no file's, or that two parts share."""
    for name in names:
        if not _NAME.fullmatch(name):
            raise StudyError(f"'{name}' cannot name a file; expected letters, digits and hyphens")
        if names.count(name) > 1:
            raise StudyError(f"two parts of {whole} share the name '{name}'; give each its own")


def _write_study(folder: Path, study: StudyFindings) -> None:
    for figure in filter(lambda one: known(one.series), study.figures):
        figure_png(figure, folder / f"figure-{figure.name}.png")
        write_csv(folder / f"figure-{figure.name}.csv", figure_frame(figure))
    for table in study.tables:
        write_csv(folder / f"table-{table.name}.csv", table_frame(table))
    for name, rows in (("cells", study.cells), ("rows", study.rows)):
        if rows:
            frame = rows_frame(rows)
            write_csv(folder / f"{name}.csv", frame)
            write_parquet(folder / f"{name}.parquet", frame)
    unfinished = [{"cell": c, "status": "failed", "reason": why} for c, why in study.failed]
    unfinished += [{"cell": c, "status": "not run", "reason": why} for c, why in study.missing]
    if unfinished:
        write_csv(folder / "unfinished.csv", rows_frame(unfinished))
    storage.write_text(folder / "index.html", render_study(study, _INDEX))


def render_index(studies: Sequence[StudyFindings], planned: Sequence[Planned] = (), title: str = TITLE) -> str:
    """Return the index as HTML: the studies, and the claims of all of them."""
    claims = [claim for study in studies for claim in study.claims]
    content: dict[str, Any] = {
        "title": title,
        "summary": summary(claims),
        "facts": _facts(studies),
        "sections": [
            *([("claims", "Claims")] if claims else []),
            *([("studies", "Studies")] if studies else []),
            *([("planned", "Not run yet")] if planned else []),
        ],
        "tally": tally(claims),
        "claims": [row for study in studies for row in claim_rows(study, page_of(study))],
        "files": (File("claims.csv", "claims.csv"), File("claims.parquet", "claims.parquet")),
        "studies": [(study, page_of(study), _done(study), tally(study.claims)) for study in studies],
        "planned": planned,
        "plotly": "",
    }
    return fill("index.html.j2", content)


def page_of(study: StudyFindings) -> str:
    """Return the path of a study's page, as the index links it."""
    return f"{study.name}/index.html"


def _facts(studies: Sequence[StudyFindings]) -> list[Fact]:
    facts = [
        Fact("studies", f"{len(studies):,}"),
        Fact("cells finished", f"{sum(len(study.cells) for study in studies):,}"),
        Fact("computing time", duration(sum(study.seconds for study in studies))),
    ]
    failed = sum(len(study.failed) for study in studies)
    return facts + ([Fact("cells failed", f"{failed:,}")] if failed else [])


def _done(study: StudyFindings) -> str:
    """Say how much of a study was run."""
    left = len(study.failed) + len(study.missing)
    more = f", {left:,} not finished" if left else ""
    return f"{study.preset}, {counted(len(study.cells), 'cell')}{more}"
