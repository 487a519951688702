"""`geoquant study`: runs resume, failures end with code 1, and lists say what is done."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from geoquant.cli import main
from geoquant.models.zoo import NETS
from geoquant.study import STUDIES
from study_toys import numbers, toy


@pytest.fixture(autouse=True)
def _two_studies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two toys instead of the real studies, one of which has a cell that fails while a file is there."""
    STUDIES.names()  # entry points are loaded before, not instead
    broken = tmp_path / "broken"
    broken.touch()
    failing = toy([{"x": 8}, {"x": 9, "broken": str(broken)}], name="failing")
    monkeypatch.setattr(STUDIES, "_items", {"failing": failing, "squares": toy(numbers(3), name="squares")})


def study(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["study", *arguments])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_a_run_resumes_and_a_list_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ("--output", str(tmp_path / "results"))
    code, out, _ = study(capsys, "run", "squares", "--only", "x=[01]", *where)
    assert code == 0
    assert out.splitlines()[1].split()[:5] == ["squares", "2", "0", "0", "0"]
    code, out, _ = study(capsys, "run", "squares", *where, "--json")
    first = json.loads(out)["studies"][0]
    assert (first["ran"], first["skipped"]) == (1, 2)
    code, out, _ = study(capsys, "list", *where)
    assert code == 0
    assert "3/3" in out
    assert "0/2" in out
    code, out, _ = study(capsys, "list", *where, "--json")
    counts = {one["name"]: one["cells"]["quick"] for one in json.loads(out)["studies"]}
    assert counts["squares"] == {"all": 3, "done": 3, "failed": 0}


def test_failures_are_told_and_retried(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ("--output", str(tmp_path / "results"))
    code, out, err = study(capsys, "run", "all", *where)
    assert code == 1
    assert "9 cannot be squared today" in err
    assert "--retry" in out
    (tmp_path / "broken").unlink()
    assert study(capsys, "run", "failing", *where)[0] == 1
    code, out, err = study(capsys, "run", "failing", "--retry", *where)
    assert code == 0
    assert re.fullmatch(r"failing x=9 broken=\S+: done in 0\.0 s", err.strip())  # a line a cell, where no bar can be
    assert out.splitlines()[1].split()[:4] == ["failing", "1", "1", "0"]


def test_all_leaves_out_studies_without_such_a_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ("--output", str(tmp_path / "results"))
    code, out, _ = study(capsys, "run", "all", "--only", "x=2$", *where, "--json")
    assert code == 0
    assert [one["study"] for one in json.loads(out)["studies"]] == ["squares"]
    code, _, err = study(capsys, "run", "all", "--only", "x=77", *where)
    assert code == 2
    assert err.startswith("geoquant: no cell of any study matches 'x=77'")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "square"), "there is no study named 'square' (did you mean 'squares'?)"),
        (("run", "squares", "--preset", "slow"), "there is no preset 'slow'; choose one of quick, laptop, full"),
        (("run", "squares", "--only", "("), "'(' is no regular expression"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = study(capsys, *arguments, "--output", str(tmp_path))
    assert code == 2
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_nets_are_listed_with_their_widths(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = study(capsys, "nets")
    assert code == 0
    assert "784-512-256-128-10" in out
    assert "567,434" in out
    assert all(name in out for name in NETS)
    code, out, _ = study(capsys, "nets", "--json")
    assert {net["name"] for net in json.loads(out)["nets"]} == set(NETS)
