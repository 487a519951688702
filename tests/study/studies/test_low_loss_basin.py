"""The theory's toy exactly, one net on one grid for real, and verdicts on made cells, both ways."""

from __future__ import annotations

from typing import Any

import pytest

from geoquant.study.results import Result, Results
from geoquant.study.studies.low_loss_basin.cells import run, toy
from geoquant.study.studies.low_loss_basin.reading import (
    control_fails,
    deployed_falls,
    diagnosed,
    gap_vanishes,
    happened,
    inward,
    recovers,
    rounding_fails,
    theory,
)

CELL: dict[str, Any] = {
    "part": "grid",
    "net": "digits_cnn",
    "data": "digits",
    "images": 300,
    "epochs": 4,
    "calibration": 64,
    "test": 100,
    "seed": 0,
    "steps": 8,
    "diagnose": 0,
}


def test_toy_is_the_published_one() -> None:
    found = toy()
    assert (found["entry"], found["entry_bound"], found["stays"]) == (8, 45, True)
    assert (found["rounded_loss"], found["other_codeword_loss"], found["second_order_sees"]) == (0.1, 0.0, 0.0)
    assert found["float_entry"] is found["entry_without_codeword_inside"] is None
    assert theory(Results((Result({"part": "toy"}, found),))).verdict == "holds"


def test_theory_fails_with_a_late_entry() -> None:
    late = {**toy(), "entry": 46, "float_entry": 3, "share_on_upper_codeword": 0.9}
    assert theory(Results((Result({"part": "toy"}, late),))).verdict == "fails"


def test_a_net_on_a_fine_grid_is_as_good_as_float() -> None:
    found = run({**CELL, "grid": "int8"})
    assert abs(found["nearest"] - found["float"]) < 0.01
    assert found["average_bits"] > 8
    assert found["rows"][0]["step"] == 0
    assert "predicted" not in found


def test_the_control_is_trained_once_and_the_diagnosis_comes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    first = run({**CELL, "grid": "int2", "diagnose": 32})
    assert first["predicted"] in ("ptq", "better-rounding", "qat", "infeasible")
    assert first["nearest"] > first["float"]
    module = "geoquant.study.studies.low_loss_basin.cells._train_float_"
    monkeypatch.setattr(module, lambda *_: pytest.fail("trained again"))
    again = run({**CELL, "grid": "int2", "diagnose": 0})
    assert [again[name] for name in ("nearest", "float_further_nearest")] == [
        first[name] for name in ("nearest", "float_further_nearest")
    ]


def made(grid: str, nearest: float, gptq: float, trained: float, control: float = 9.0, **more: Any) -> Result:
    losses = {"float": 1.0, "nearest": 1 + nearest, "gptq": 1 + gptq, "descent": 1 + gptq, "trained": 1 + trained}
    losses["float_further_nearest"] = 1 + control
    rows = tuple(more.pop("rows", ()))
    return Result({"part": "grid", "net": "n", "data": "d", "grid": grid, "seed": 0}, {**losses, **more}, rows)


def results(*cells: Result) -> Results:
    return Results(cells, "again")


FINE = made("int8", 0.001, 0.0, 0.0)


def test_gap_on_coarse_and_fine_grids() -> None:
    assert gap_vanishes(results(FINE, made("int2", 3.0, 1.0, 0.2))).verdict == "holds"
    assert gap_vanishes(results(FINE, made("int2", 0.02, 0.0, 0.0))).verdict == "fails"
    assert gap_vanishes(results(FINE)).verdict == "not measured"


def test_rounding_training_and_control() -> None:
    good, bad = made("int2", 3.0, 1.0, 0.2), made("int2", 3.0, 0.01, 2.0, control=0.5)
    assert [claim(results(good)).verdict for claim in (rounding_fails, recovers, control_fails)] == ["holds"] * 3
    assert [claim(results(bad)).verdict for claim in (rounding_fails, recovers, control_fails)] == ["fails"] * 3


def test_course_of_training() -> None:
    falling = [{"deployed": 2.0, "latent": 1.0, "inward": 0.1}, {"deployed": 1.0, "latent": 1.2, "inward": -0.1}]
    down, up = made("int2", 3, 1, 0, rows=falling), made("int2", 3, 1, 0, rows=falling[::-1])
    assert [deployed_falls(results(cell)).verdict for cell in (down, up)] == ["holds", "fails"]
    assert [inward(results(cell)).verdict for cell in (down, up)] == ["holds", "fails"]


@pytest.mark.parametrize(
    ("rises", "word"),
    [
        ((0.01, 0.0, 0.0), "ptq"),
        ((1.0, 0.02, 0.0), "better-rounding"),
        ((1.0, 0.5, 0.04), "qat"),
        ((1.0, 0.5, 0.3), "infeasible"),
    ],
)
def test_what_happened(rises: tuple[float, float, float], word: str) -> None:
    cell = made("int2", *rises, predicted=word)
    assert happened(cell) == word
    assert diagnosed(results(cell)).verdict == "holds"
    wrong = made("int2", *rises, predicted="ptq" if word != "ptq" else "qat")
    assert diagnosed(results(wrong)).verdict == "fails"
