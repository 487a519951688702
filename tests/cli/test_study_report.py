"""`geoquant study report` writes what is finished, names what is not, and says what to run first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from geoquant.cli import main
from geoquant.study import STUDIES, Outcome, Store
from geoquant.study.studies.digits_depth import WIDTHS

STUDY = STUDIES["digits-depth"]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """The quick preset as if it had been run: later layers need fewer bits."""
    folder = tmp_path / "results"
    for index, cell in enumerate(STUDY.grid("quick")):
        rows = tuple({"bits": bits, "kl": 4.0**-bits, "accuracy": 90.0} for bits in WIDTHS)
        metrics = {"float_accuracy": 97.0, "bits_needed": 8 - index % 5, "kl_at_3_bits": 4.0**-3, "weights": 100}
        outcome = Outcome("done", metrics, rows, None, 0.5, {"geoquant": "0"}, "2026-01-01T00:00:00+00:00")
        Store(folder).write(cell, outcome)
    return folder


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["study", "report", *arguments])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_what_is_finished_is_reported(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = report(capsys, "--output", str(output), "--site", str(tmp_path / "site"), "--json")
    assert code == 0
    document = json.loads(out)
    assert [one["name"] for one in document["studies"]] == ["digits-depth"]
    assert document["studies"][0]["preset"] == "quick"
    assert set(document["not_run"]) == set(STUDIES.names()) - {"digits-depth"}
    assert Path(document["index"]).is_file()
    page = (tmp_path / "site" / "digits-depth" / "index.html").read_text(encoding="utf-8")
    for claim in document["studies"][0]["claims"]:
        assert claim["verdict"] in ("holds", "fails", "partly")
        assert claim["claim"] in page
    for figure in ("bits-needed", "damage"):
        assert (tmp_path / "site" / "digits-depth" / f"figure-{figure}.png").is_file()


def test_the_table_counts_verdicts(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = report(capsys, "digits-depth", "--output", str(output), "--site", str(tmp_path / "site"))
    assert code == 0
    head, row, *_ = (line.split() for line in out.splitlines())
    assert head == ["study", "preset", "cells", "holds", "fails", "partly", "not", "measured"]
    assert row[:3] == ["digits-depth", "quick", str(len(STUDY.grid("quick")))]
    assert sum(map(int, row[3:])) == len(STUDY.claims)


@pytest.mark.parametrize("arguments", [["digits-depth"], [], ["digits-depth", "--preset", "full"]])
def test_without_results_it_says_what_to_run(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = report(capsys, *arguments, "--output", str(tmp_path), "--site", str(tmp_path / "site"))
    assert code == 2
    assert "geoquant study run" in " ".join(err.split())
    assert not (tmp_path / "site").exists()


def test_an_unknown_preset_is_refused(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = report(capsys, "digits-depth", "--preset", "nonsense", "--output", str(output))
    assert code == 2
    assert "there is no preset 'nonsense'" in err
