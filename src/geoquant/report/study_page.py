"""One page a study: its question, what came of each claim, figures, tables, and where the numbers lie.

Like every page it is a single file that fetches nothing; pictures and data lie beside it and are linked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from plotly.offline import get_plotlyjs

from geoquant.findings import StudyFindings
from geoquant.report.labels import counted, duration
from geoquant.report.pages import Fact, File, fill
from geoquant.report.study_figures import known
from geoquant.report.study_panels import claim_rows, figure_panel, study_table, summary, tally

MOST_UNFINISHED = 50  # cells that a page names; the file beside it names all


def figure_files(name: str) -> tuple[File, ...]:
    """Return the files of one figure."""
    return File("PNG", f"figure-{name}.png"), File("CSV", f"figure-{name}.csv")


def data_files(findings: StudyFindings) -> tuple[File, ...]:
    """Return the files of a study's cells."""
    files = [File(f"cells.{kind}", f"cells.{kind}") for kind in ("csv", "parquet") if findings.cells]
    files += [File(f"rows.{kind}", f"rows.{kind}") for kind in ("csv", "parquet") if findings.rows]
    return (*files, *([File("unfinished.csv", "unfinished.csv")] if findings.failed or findings.missing else []))


def render_study(findings: StudyFindings, index: str = "") -> str:
    """Return the page of one study as HTML.

    Args:
        findings: what it found.
        index: relative path of the page that lists all studies; no link when empty.
    """
    shown = [figure for figure in findings.figures if known(figure.series)]
    content: dict[str, Any] = {
        "title": findings.title,
        "index": index,
        "question": findings.question,
        "source": findings.source,
        "summary": summary(findings.claims),
        "facts": _facts(findings),
        "sections": _sections(findings),
        "claims": claim_rows(findings),
        "tally": tally(findings.claims),
        "panels": [figure_panel(figure, figure_files(figure.name)) for figure in shown],
        "empty": "; ".join(figure.title for figure in findings.figures if figure not in shown),
        "tables": [(study_table(each), each.note, File("CSV", f"table-{each.name}.csv")) for each in findings.tables],
        "counts": _counts(findings),
        "files": data_files(findings),
        "failed": _named(findings.failed),
        "missing": _named(findings.missing),
        "provenance": _provenance(findings),
        "plotly": get_plotlyjs() if shown else "",
    }
    return fill("study.html.j2", content)


def _facts(findings: StudyFindings) -> list[Fact]:
    total = len(findings.cells) + len(findings.failed) + len(findings.missing)
    facts = [Fact("preset", findings.preset), Fact("cells finished", f"{len(findings.cells):,} of {total:,}")]
    facts += [Fact("failed", f"{len(findings.failed):,}")] if findings.failed else []
    return [*facts, Fact("computing time", duration(findings.seconds))]


def _sections(findings: StudyFindings) -> list[tuple[str, str]]:
    sections = [("claims", "Claims")] if findings.claims else []
    sections += [("figures", "Figures")] if findings.figures else []
    sections += [("tables", "Tables")] if findings.tables else []
    return [*sections, ("data", "Data"), ("provenance", "Provenance")]


def _counts(findings: StudyFindings) -> str:
    """Say what the data files hold."""
    parts = [counted(len(findings.cells), "finished cell")]
    parts += [f"{counted(len(findings.rows), 'row')} that they brought along"] if findings.rows else []
    return " and ".join(parts)


def _named(cells: Sequence[tuple[str, str]]) -> tuple[str, list[tuple[str, str]]]:
    """Return how many cells there are, in words, and the first of them."""
    more = f", the first {MOST_UNFINISHED} below" if len(cells) > MOST_UNFINISHED else ""
    return (counted(len(cells), "cell") + more if cells else ""), list(cells[:MOST_UNFINISHED])


def _provenance(findings: StudyFindings) -> list[Fact]:
    first, last = (date[:10] for date in findings.finished)
    when = [Fact("finished", first if first == last else f"{first} to {last}")] if first else []
    versions = [Fact(name, version) for name, version in findings.versions.items()]
    return [Fact("command", findings.command), Fact("study", findings.name), *when, *versions]
