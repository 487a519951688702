"""What a report is told is what the cells say: which preset, which cells, and what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from geoquant.errors import StudyError
from geoquant.findings import Claim, Figure, Series, Table
from geoquant.study import Results, Study, begun, fullest, gather, results, run_study, summary
from study_toys import numbers, square, toy


def largest(found: Results) -> Claim:
    value = max(cell["square"] for cell in found)
    return Claim("nine is the largest", "school", str(value), "holds" if value == 9 else "fails", found.command)


def drawn(found: Results) -> Figure:
    return Figure("squares", "lines", "Squares", "x", "x²", (found.series("square", "x", "square"),), "A parabola.")


def undrawn(_: Results) -> None:
    return None


def table(found: Results) -> Table:
    return Table("squares", "Squares", ("x", "x²"), tuple((cell["x"], cell["square"]) for cell in found))


READ = {"claims": (largest,), "figures": (drawn, undrawn), "tables": (table,)}


def test_findings_hold_what_was_measured_and_what_was_not(tmp_path: Path) -> None:
    configurations = [*numbers(3), {"x": 3, "broken": str(tmp_path)}, {"x": 4}, {"x": 5}]
    study = toy(configurations, unavailable=lambda one: "five is away" if one["x"] == 5 else None, **READ)
    run_study(study, "quick", tmp_path, only="x=[01235]")
    found = gather(study, "quick", tmp_path)
    assert found.claims[0].verdict == "fails"
    assert [figure.name for figure in found.figures] == ["squares"]
    assert found.figures[0].series[0] == Series(
        "square", (0, 1, 2), (0.0, 1.0, 4.0), (None,) * 3, ("0 (1)", "1 (1)", "4 (1)")
    )
    assert found.tables[0].rows == ((0, 0), (1, 1), (2, 4))
    assert [(row["x"], row["square"]) for row in found.cells] == [(0, 0), (1, 1), (2, 4)]
    assert found.rows[-1] == {"x": 2, "power": 2, "value": 4}
    label = f"x=3 broken={tmp_path}"
    assert found.failed == ((label, "ArithmeticError: 3 cannot be squared today"),)
    assert found.missing == (("x=4", "not run yet"), ("x=5", "five is away"))
    assert set(found.versions) == {"geoquant", "torch", "python"}
    assert found.finished[0] <= found.finished[1]
    assert found.seconds > 0
    assert found.command == "geoquant study run toy --preset quick"


def test_nothing_to_report_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="geoquant study run toy --preset quick"):
        gather(toy(numbers(1)), "quick", tmp_path)


def test_the_fullest_preset_is_the_one_with_cells_of_its_own(tmp_path: Path) -> None:
    grids = {"quick": lambda: numbers(2), "laptop": lambda: numbers(4), "full": lambda: numbers(8)}
    study = Study("toy", "t", "s", "q?", grids, square)
    assert fullest(study, tmp_path) is None
    assert not begun(study, "quick", tmp_path)
    run_study(study, "quick", tmp_path)
    assert fullest(study, tmp_path) == "quick"  # the cells that laptop shares with it do not speak for laptop
    run_study(study, "full", tmp_path, only="x=6")
    assert fullest(study, tmp_path) == "full"
    assert begun(study, "laptop", tmp_path)
    assert len(results(study, "laptop", tmp_path)) == 2
    assert results(study, "laptop", tmp_path).missing == 2


def test_cells_of_another_version_or_configuration_take_no_part(tmp_path: Path) -> None:
    run_study(toy(numbers(3)), "quick", tmp_path)
    assert len(results(toy(numbers(3), version=2), "quick", tmp_path)) == 0
    assert [cell["x"] for cell in results(toy(numbers(2)), "quick", tmp_path)] == [0, 1]


def test_numbers_that_are_not_finite_become_none(tmp_path: Path) -> None:
    import numpy as np

    def diverges(configuration: dict[str, int]) -> dict[str, object]:
        value = float("inf") if configuration["x"] else 2.0
        return {"loss": value, "losses": [value], "count": np.int64(3), "share": np.float32(0.5)}

    study = toy(numbers(2), run=diverges)
    run_study(study, "quick", tmp_path)
    found = results(study, "quick", tmp_path)
    assert [cell["loss"] for cell in found] == [2.0, None]
    assert found[1]["losses"] == [None]
    assert (found[0]["count"], found[0]["share"]) == (3, 0.5)
    mean = found.summary("loss")
    assert mean is not None
    assert (mean.mean, mean.count) == (2.0, 1)


def test_what_is_no_json_fails_the_cell_by_name(tmp_path: Path) -> None:
    study = toy(numbers(1), run=lambda _: {"weights": object()})
    report = run_study(study, "quick", tmp_path)
    assert report.failed[0][1].startswith("StudyError: the metric 'weights' is a object")
    with pytest.raises(StudyError, match="a mean needs numbers"):
        summary(["a"])  # type: ignore[list-item]


def test_groups_keep_the_order_of_cells(tmp_path: Path) -> None:
    configurations = [{"x": x, "seed": seed} for x in (3, 1) for seed in (0, 1)]
    study = toy(configurations)
    run_study(study, "quick", tmp_path)
    found = results(study, "quick", tmp_path)
    assert [key for key, _ in found.by("x")] == [(3,), (1,)]
    assert found.values("x") == (3, 1)
    assert [len(cells) for _, cells in found.by("x", "seed")] == [1] * 4
    assert found.series("s", "x", "square").spread == (0.0, 0.0)
    assert len(found.where(x=(1, 3), seed=0)) == 2
    assert len(found.where(absent=None)) == 4
