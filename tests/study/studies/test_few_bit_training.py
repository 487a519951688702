"""A run in few bits as a cell, and verdicts on made cells, both ways."""

from __future__ import annotations

from typing import Any

import pytest

from geoquant.study.results import Result, Results
from geoquant.study.studies.few_bit_training.cells import run
from geoquant.study.studies.few_bit_training.reading import (
    cheaper,
    combined_better,
    dominates,
    eight_bits_fail,
    low_early,
    numgeom_succeeds,
)

CELL: dict[str, Any] = {
    "net": "digits_cnn",
    "data": "digits",
    "levels": "coarse",
    "rounding": "stochastic",
    "options": {},
    "seed": 0,
    "images": 200,
    "epochs": 2,
    "batch": 32,
    "test": 100,
}


def test_float32_spends_32_bits_on_everything() -> None:
    found = run({**CELL, "method": "float32"})
    assert found["average_bits"] == 32
    assert found["steps"] == 12
    assert {bits for row in found["schedule"] for bits in row} <= {32}
    assert len(found["rows"]) == len(found["moments"]) == 12


def test_an_adaptive_run_says_when_which_layer_had_how_many_bits() -> None:
    found = run({**CELL, "method": "seed18"})
    assert len(found["schedule"]) == len(found["layers"]) == 5
    first = [row[0] for row in found["schedule"]]
    assert first == [32] * 5  # the source's warm-up
    assert {bits for row in found["schedule"] for bits in row} <= {4, 8, 16, 32}
    assert 4 < found["average_bits"] < 32
    means = [sum(row[place] for row in found["schedule"]) / 5 for place in range(len(found["moments"]))]
    assert means == pytest.approx([row["bits"] for row in found["rows"]])


def test_the_same_seed_gives_the_same_run() -> None:
    one, other = (run({**CELL, "method": "uniform:int4", "epochs": 1}) for _ in range(2))
    assert [one[name] for name in ("accuracy", "rows", "bit_operations")] == [
        other[name] for name in ("accuracy", "rows", "bit_operations")
    ]


def made(method: str, accuracy: float, cost: float, levels: str = "coarse", **metrics: Any) -> Result:
    configuration = {"net": "n", "data": "d", "method": method, "levels": levels, "rounding": "stochastic"}
    configuration |= {"options": {}, "seed": 0, "epochs": 4}
    rows = tuple({"step": step, "bits": bits} for step, bits in enumerate(metrics.pop("bits", [8.0] * 8)))
    metrics = {"accuracy": accuracy, "bit_operations": cost, "anomalies": 0, "steps": 8, **metrics}
    return Result(configuration, metrics, rows)


def results(*cells: Result) -> Results:
    return Results(cells, "again")


FLOAT = made("float32", 90.0, 100.0)


@pytest.mark.parametrize(
    ("accuracy", "cost", "verdict"), [(89.8, 60.0, "holds"), (89.8, 80.0, "fails"), (89.0, 60.0, "fails")]
)
def test_saving_counts_at_equal_accuracy_alone(accuracy: float, cost: float, verdict: str) -> None:
    claim = cheaper("numgeom", "fine", "float32", 30)
    assert claim(results(FLOAT, made("numgeom", accuracy, cost, "fine"))).verdict == verdict
    assert claim(results(FLOAT)).verdict == "not measured"


@pytest.mark.parametrize(
    ("bits", "verdict"), [([4, 4, 4, 4, 8, 8, 8, 8], "holds"), ([8, 8, 8, 8, 4, 4, 4, 4], "fails")]
)
def test_low_early(bits: list[float], verdict: str) -> None:
    assert low_early(results(FLOAT, made("numgeom", 90.0, 50.0, bits=bits))).verdict == verdict


def test_the_warm_up_of_the_source_is_no_early_precision() -> None:
    run_of_source = made("seed18", 90.0, 50.0, bits=[32, 32, 4, 4, 4, 8, 8, 8])  # two steps an epoch
    assert low_early(results(FLOAT, run_of_source)).verdict == "holds"


def test_failures_are_nan_or_points_lost() -> None:
    fine, lost, broken = (
        made("uniform:int8", 89, 25),
        made("uniform:int8", 80, 25),
        made("uniform:int8", 89, 25, anomalies=1),
    )
    assert [eight_bits_fail(results(FLOAT, cell)).verdict for cell in (fine, lost, broken)] == [
        "fails",
        "holds",
        "holds",
    ]
    assert numgeom_succeeds(results(FLOAT, made("numgeom", 80, 50, "fine"))).verdict == "fails"
    assert numgeom_succeeds(results(FLOAT, made("numgeom", 89, 50, "fine"))).verdict == "holds"


def test_rivals_that_are_cheaper_and_as_accurate() -> None:
    mine = made("numgeom", 89.0, 50.0, "fine")
    assert dominates(results(FLOAT, mine)).verdict == "holds"
    assert dominates(results(FLOAT, mine, made("uniform:int4", 89.5, 40.0))).verdict == "fails"
    assert dominates(results(FLOAT, mine, made("uniform:int4", 88.5, 40.0))).verdict == "holds"


def test_combined_against_either_alone() -> None:
    alone = (made("gradient", 90.0, 50.0), made("curvature", 90.0, 50.0))
    assert combined_better(results(made("combined", 90.0, 45.0), *alone)).verdict == "holds"
    assert combined_better(results(made("combined", 90.0, 49.0), *alone)).verdict == "fails"
