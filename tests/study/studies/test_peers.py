"""Other tools take part where they are at hand; a committed result is read; else nothing was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from geoquant.errors import StudyError
from geoquant.study import STUDIES
from geoquant.study.results import Result, Results
from geoquant.study.studies import peers

ROWS = [
    {"contestant": "geoquant, fast", "budget": 3.0, "average_bits": 3.0, "accuracy": 90.0, "spread": 0.1, "seconds": 5},
    {"contestant": "uniform, GPTQ", "budget": 3.0, "average_bits": 3.0, "accuracy": 95.0, "spread": 0.1, "seconds": 5},
    {"contestant": "MCT", "budget": 3.0, "average_bits": 2.9, "accuracy": 89.0, "spread": 0.1, "seconds": 5},
    {"contestant": "AutoRound", "budget": None, "reason": "no blocks"},
]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source tree without results, and no environments."""
    monkeypatch.setattr(peers, "BENCHMARKS", tmp_path / "benchmarks")
    monkeypatch.delenv(peers.ENVIRONMENTS, raising=False)
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    return tmp_path / "benchmarks"


def commit(tree: Path, rows: list[dict[str, Any]]) -> None:
    (tree / "results" / "peers.json").write_text(json.dumps({"provenance": {"command": "run it"}, "rows": rows}))


def test_without_tools_and_results_nothing_is_measured(tree: Path) -> None:
    for configuration in peers.configurations("quick"):
        assert "environments.py" in str(peers.unavailable(configuration))


def test_a_committed_result_is_read_and_judged(tree: Path) -> None:
    commit(tree, ROWS)
    configuration = next(iter(peers.configurations("laptop")))
    assert peers.unavailable(configuration) is None
    metrics = dict(peers.run(configuration))
    rows = tuple(metrics.pop("rows"))
    assert (len(rows), metrics["born"]) == (4, "run it")
    found = Results((Result(configuration, metrics, rows),), "again")
    assert peers.ahead(found).verdict == "holds"  # beside other tools; uniform is no other tool
    assert len(peers.table("vision", found).rows) == 4
    figure = peers.over_bits("vision", found)
    assert figure is not None
    assert [series.name for series in figure.series] == ["geoquant, fast", "uniform, GPTQ", "MCT"]


def test_a_changed_result_is_another_cell(tree: Path) -> None:
    keys = set()
    for accuracy in (89.0, 91.0):
        commit(tree, [{**row, "accuracy": accuracy} for row in ROWS])
        keys.add(STUDIES["peers"].grid("quick")[0].key)
    assert len(keys) == 2


@pytest.mark.parametrize(("part", "verdict"), [("vision", "fails"), ("language", "holds")])
def test_less_is_better_for_a_loss(part: str, verdict: str) -> None:
    rows = tuple(
        {"contestant": name, "budget": 3.0, "figure": value} for name, value in (("geoquant", 1.0), ("HQQ", 2.0))
    )
    assert peers.ahead(Results((Result({"part": part}, {}, rows),))).verdict == verdict


def test_budgets_where_no_other_tool_has_a_figure_are_named_and_win_nothing() -> None:
    rows = (
        {"contestant": "geoquant", "budget": 2.5, "figure": 90.0},
        {"contestant": "HQQ", "budget": 2.5, "figure": None},
    )
    claim = peers.ahead(Results((Result({"part": "vision"}, {}, rows),)))
    assert claim.verdict == "not measured"
    assert "no other tool has one on" in claim.measured
    assert "2.5 bits" in claim.measured


def test_where_the_tools_are_at_hand_the_comparison_runs(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(tree, ROWS)
    monkeypatch.setenv(peers.ENVIRONMENTS, "somewhere")
    (configuration, _) = peers.configurations("quick")
    assert configuration["arguments"] == peers.QUICK["vision"]
    (tree / "peers").mkdir()
    script = tree / "peers" / "run.py"
    script.write_text(
        "import sys, json, pathlib\n"
        "target = pathlib.Path(sys.argv[sys.argv.index('--output') + 1])\n"
        f"target.write_text(json.dumps({{'rows': {ROWS[:1]!r}}}))\n"
    )
    assert [row["figure"] for row in peers.run(configuration)["rows"]] == [90.0]
    script.write_text("raise SystemExit('out of order')")
    with pytest.raises(StudyError, match="out of order"):
        peers.run(configuration)
