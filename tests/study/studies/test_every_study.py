"""What holds for every study of the tree: presets, reading from nothing, sources that exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from geoquant.study import PRESETS, STUDIES
from geoquant.study.results import Results

DOCS = Path(__file__).parents[3] / "docs"


@pytest.mark.parametrize("name", STUDIES.names())
def test_nothing_is_claimed_of_no_cells(name: str) -> None:
    study, nothing = STUDIES[name], Results((), "again", "quick")
    claims = [claim(nothing) for claim in study.claims]
    assert claims
    assert {claim.verdict for claim in claims} == {"not measured"}
    assert all(claim.command == "again" for claim in claims)
    figures = [figure for figure in (draw(nothing) for draw in study.figures) if figure is not None]
    assert all(not any(series.y for series in figure.series) for figure in figures)
    assert all(not made.rows for made in (table(nothing) for table in study.tables))


@pytest.mark.parametrize("name", STUDIES.names())
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_hold_cells_without_image_sets_too(name: str, preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("GEOQUANT_DATA_DIR", "GEOQUANT_WEIGHTS_DIR", "GEOQUANT_PEERS_DIR"):
        monkeypatch.delenv(variable, raising=False)
    study = STUDIES[name]
    cells = study.grid(preset)  # type: ignore[arg-type]  # refuses duplicates and what is no JSON
    reasons = [study.unavailable(cell.configuration) for cell in cells]
    if preset == "quick" and name != "peers":
        assert None in reasons  # something runs on what comes with the package


@pytest.mark.parametrize("name", STUDIES.names())
def test_claims_name_a_source_that_is_documented(name: str) -> None:
    headings = {line[3:].strip() for line in (DOCS / "sources.md").read_text().splitlines() if line.startswith("## ")}
    for claim in (claim(Results((), "", "")) for claim in STUDIES[name].claims):
        assert claim.source in headings or (DOCS / claim.source.partition(",")[0].removeprefix("docs/")).is_file()
