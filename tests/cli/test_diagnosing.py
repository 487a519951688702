"""`geoquant diagnose`, and the report of what it wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from geoquant.basin import Diagnosis
from geoquant.cli import main

NETS = str(Path(__file__).parents[1] / "nets.py")
MODEL = (f"{NETS}:small_net", "--data", f"{NETS}:small_batches")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_diagnosis_is_printed_saved_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "diagnosis"
    code, out, err = run(
        capsys, "diagnose", *MODEL, "--grid", "int2", "--fix", "head=int8", "--tolerance", "0.002", "--output",
        str(folder), "--no-slices",
    )  # fmt: skip
    assert code == 0
    assert "what to do:" in out
    assert "2 grids from int2, int8" in out
    found = Diagnosis.load(folder)
    assert str(found) == out.rstrip("\n")
    assert str(folder / "diagnosis.json") in err
    page = tmp_path / "page.html"
    code, _, _ = run(capsys, "report", str(folder), "--output", str(page))
    assert code == 0
    html = page.read_text()
    assert f"<h3>{found.verdict}: 2 grids from int2, int8" in html


def test_json_holds_the_whole_diagnosis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "plan"
    run(capsys, "diagnose", *MODEL, "--grid", "int8", "--output", str(plan), "--no-slices")
    code, out, _ = run(capsys, "diagnose", *MODEL, "--plan", str(plan / "plan.json"), "--json")
    assert code == 0
    document = json.loads(out)
    assert document["verdict"] == "ptq"
    assert document["constructive"] == {"crossed": [], "found": "", "steps": 0.0}
    assert document["evidence"]["tolerance"] == 0.05


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "one of --average-bits, --plan or --grid"),
        (("--grid", "int2", "--average-bits", "3"), "one of --average-bits, --plan or --grid"),
        (("--average-bits", "3", "--fix", "head=int8"), "--fix goes with --grid"),
        (("--grid", "int1"), "`bits=1` leaves"),
        (("--grid", "int2", "--tolerance", "-1"), "tolerance=-1"),
    ],
)
def test_bad_wishes_end_with_two_and_a_sentence(
    options: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "diagnose", *MODEL, *options)
    assert code == 2
    assert out == ""
    assert words in " ".join(err.replace("│", " ").split())
