"""The site holds what was found, leads to every file, escapes what comes from outside, and repeats to the byte."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from geoquant.errors import OutputError, StudyError
from geoquant.findings import Claim, Series, Table
from geoquant.report import Planned, render_index, render_study, write_site
from studies import BARS, CELLS, CLAIMS, FIGURES, LINES, TABLE, findings

HOSTILE = "<img src=x onerror=alert()>&\"'</script>"
PLANNED = Planned("later", "A study to come", "And then?", "geoquant study run later")


class Reader(HTMLParser):
    """Collect links, ids, tags, and the cells of the claims table."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.claims: list[list[str]] = []
        self._in_claims = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values["href"]] if tag == "a" else []
        self._in_claims = values.get("class") == "claims" if tag == "table" else self._in_claims
        if self._in_claims and tag == "tr":
            self.claims.append([])
        if self._in_claims and tag in ("th", "td"):
            self.claims[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_claims = self._in_claims and tag != "table"

    def handle_data(self, data: str) -> None:
        if self._in_claims and self.claims and self.claims[-1]:
            self.claims[-1][-1] += data


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    write_site(folder, [findings("toy"), findings("other", figures=(BARS,), claims=())], [PLANNED])
    return folder


def test_every_link_leads_somewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert [page.relative_to(site).as_posix() for page in pages] == ["index.html", "other/index.html", "toy/index.html"]
    linked = set()
    for page in pages:
        reader = Reader(page.read_text(encoding="utf-8"))
        assert len(set(reader.ids)) == len(reader.ids)
        for link in reader.links:
            if link.startswith("#"):
                assert link[1:] in reader.ids
            else:
                assert (page.parent / link).is_file(), link
                linked.add((page.parent / link).resolve())
    # And nothing lies there that no page leads to.
    assert {path.resolve() for path in site.rglob("*") if path.is_file()} == linked


def test_claims_stand_in_the_index_with_everything_that_belongs_to_them(site: Path) -> None:
    head, *rows = Reader((site / "index.html").read_text(encoding="utf-8")).claims
    assert [cell.strip() for cell in head] == ["claim", "measured", "verdict", "source", "command"]
    wanted = [[f"{c.claim} toy", c.measured, c.verdict, c.source, c.command] for c in CLAIMS]
    assert [[" ".join(cell.split()) for cell in row] for row in rows] == wanted
    table = pd.read_csv(site / "claims.csv")
    assert list(table["verdict"]) == [claim.verdict for claim in CLAIMS]
    assert set(table["study"]) == {"toy"}
    assert pd.read_parquet(site / "claims.parquet").equals(
        table.astype(pd.read_parquet(site / "claims.parquet").dtypes)
    )


def test_the_index_says_what_came_of_the_claims_and_what_is_still_to_run() -> None:
    text = " ".join(re.sub("<[^>]*>", "", render_index([findings()], [PLANNED])).split())
    assert "Of 4 claims: 1 holds, 1 fails, 1 holds in part, 1 was not measured." in text
    assert "A study to come" in text
    assert "geoquant study run later" in text


def test_cells_are_kept_exactly(site: Path) -> None:
    csv, parquet = pd.read_csv(site / "toy" / "cells.csv"), pd.read_parquet(site / "toy" / "cells.parquet")
    for table in (csv, parquet):
        assert list(table.columns) == list(CELLS[0])
        assert list(table["accuracy"]) == [cell["accuracy"] for cell in CELLS]
        assert list(table["bits"]) == ["2", "ternary"]
    assert parquet["extra"].dtype == "Int64"
    assert parquet["extra"].isna().tolist() == [False, True]
    assert pd.read_csv(site / "toy" / "rows.csv").to_dict("records") == [{"net": "mlp", "layer": "stem", "kl": 0.5}]
    unfinished = pd.read_csv(site / "toy" / "unfinished.csv")
    assert list(unfinished["status"]) == ["failed", "not run"]


def test_figures_and_tables_lie_beside_as_csv(site: Path) -> None:
    table = pd.read_csv(site / "toy" / "figure-accuracy.csv")
    assert list(table.columns) == ["series", "x: average bits", "y: accuracy (%)", "standard deviation"]
    assert list(table["y: accuracy (%)"]) == [y for series in LINES.series for y in series.y]
    assert list(pd.read_csv(site / "toy" / "table-bytes.csv")["bytes"]) == [row[1] for row in TABLE.rows]


def test_the_same_findings_give_the_same_bytes(site: Path, tmp_path: Path) -> None:
    write_site(tmp_path, [findings("toy", figures=(BARS,))])
    again = tmp_path / "again"
    write_site(again, [findings("toy", figures=(BARS,))])
    for path in (path for path in again.rglob("*") if path.is_file()):
        assert path.read_bytes() == (tmp_path / path.relative_to(again)).read_bytes(), path


def test_unfinished_cells_are_named_with_their_reason(site: Path) -> None:
    text = (site / "toy" / "index.html").read_text(encoding="utf-8")
    assert re.search(r"<dt>net=cnn seed=0</dt><dd>DataError: no such set</dd>", text)
    many = tuple((f"cell {index}", "not run yet") for index in range(60))
    text = render_study(findings(missing=many))
    assert "60 cells, the first 50 below" in text
    assert "cell 49" in text
    assert "cell 50" not in text


def test_what_comes_from_outside_is_text() -> None:
    def tags(word: str) -> list[str]:
        claim = Claim(word, word, word, "holds", word)
        series = (replace(BARS.series[0], name=word),)
        figure = replace(BARS, title=word, x=word, y=word, alt=word, note=word, series=series)
        table = Table("bytes", word, (word,), ((word,),), word)
        facts = {"title": word, "question": word, "source": word, "failed": ((word, word),), "versions": {word: word}}
        study = findings(figures=(figure,), claims=(claim,), tables=(table,), **facts)
        return Reader(render_study(study)).tags + Reader(render_index([study], [Planned("x", word, word, word)])).tags

    assert tags(HOSTILE) == tags(re.sub(r"[^\w ]", "x", HOSTILE))


def test_figures_without_a_value_are_named_and_not_drawn(tmp_path: Path) -> None:
    empty = replace(BARS, name="empty", title="An empty one", series=(Series("a", (1.0,), (None,)),))
    write_site(tmp_path, [findings(figures=(BARS, empty))])
    assert "figures could show: An empty one." in (tmp_path / "toy" / "index.html").read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.rglob("figure-*")) == ["figure-needed.csv", "figure-needed.png"]


def test_claims_that_were_not_measured_come_last() -> None:
    rows = Reader(render_study(findings(claims=CLAIMS[::-1]))).claims[1:]
    assert [row[2].strip() for row in rows] == ["partly", "holds", "fails", "not measured"]


def test_a_page_with_nothing_to_draw_carries_no_plotly() -> None:
    assert len(render_study(findings(figures=()))) < 100_000 < len(render_study(findings(figures=(BARS,))))


@pytest.mark.parametrize("name", ["../up", "a/b", "", "a.b", "con "])
def test_names_that_are_no_files_are_refused(name: str, tmp_path: Path) -> None:
    for study in (findings(name), findings(figures=(replace(BARS, name=name),))):
        with pytest.raises(StudyError, match="cannot name a file"):
            write_site(tmp_path / "site", [study])
    assert list(tmp_path.iterdir()) == []


def test_two_parts_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="share the name 'needed'"):
        write_site(tmp_path / "site", [findings(figures=(BARS, BARS))])
    with pytest.raises(StudyError, match="share the name 'toy'"):
        write_site(tmp_path / "site", [findings(), findings()])


def test_a_file_in_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "toy").write_text("in the way")
    with pytest.raises(OutputError):
        write_site(tmp_path, [findings(figures=FIGURES[:1])])
