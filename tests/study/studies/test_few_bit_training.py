"""A run in few bits as a cell, and verdicts on made cells, both ways."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from geoquant.study.results import Result, Results
from geoquant.study.studies.few_bit_training import cells
from geoquant.study.studies.few_bit_training.cells import run
from geoquant.study.studies.few_bit_training.drawing import frontier
from geoquant.study.studies.few_bit_training.practice import (
    dead_zone,
    failure_table,
    failures_foretold,
    rises_foretold,
    rules_differ,
    state_hurts_first,
)
from geoquant.study.studies.few_bit_training.reach import best_of_the_rest, reach_table, reaches, reaches_best
from geoquant.study.studies.few_bit_training.reading import (
    cheaper,
    combined_better,
    dominates,
    eight_bits_fail,
    low_early,
    numgeom_succeeds,
)
from geoquant.training.run import train_

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


def test_weights_start_as_the_cell_says(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []

    def watched(model: torch.nn.Module, *rest: Any) -> Any:
        seen.append(model.features[3].weight.detach().clone())  # type: ignore[index, union-attr]
        return train_(model, *rest)

    monkeypatch.setattr(cells, "train_", watched)
    for start in ({}, {"start": "kaiming_normal"}):
        run({**CELL, "method": "float32", "epochs": 1, **start})
    torchs, kaiming = seen
    fan_in = kaiming[0].numel()
    assert float(kaiming.std()) == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)  # He et al., arXiv:1502.01852
    assert float(torchs.std()) == pytest.approx((1 / 3 / fan_in) ** 0.5, rel=0.05)


def made(method: str, accuracy: float, cost: float, levels: str = "coarse", **metrics: Any) -> Result:
    configuration = {"net": "n", "data": "d", "method": method, "levels": levels, "rounding": "stochastic"}
    configuration |= {"options": metrics.pop("options", {}), "seed": metrics.pop("seed", 0), "epochs": 4}
    configuration["rounding"] = metrics.pop("rounding", "stochastic")
    rows = tuple({"step": step, "bits": bits} for step, bits in enumerate(metrics.pop("bits", [8.0] * 8)))
    costs = {"bit_operations": cost, "bit_operations_product": cost**2, "average_bits": cost}
    metrics = {"accuracy": accuracy, **costs, "anomalies": 0, "steps": 8, **metrics}
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


@pytest.mark.parametrize(
    ("accuracy", "cost", "verdict"), [(89.8, 19.0, "holds"), (89.8, 21.0, "fails"), (89.6, 19.0, "fails")]
)
def test_reach_is_measured_below_float32(accuracy: float, cost: float, verdict: str) -> None:
    mine = made("numgeom", accuracy, cost, "fine")
    assert reaches("float32")(results(FLOAT, mine)).verdict == verdict
    worse_amp = made("amp", 80.0, 55.0)  # its accuracy is no excuse, its cost is the measure
    assert reaches("amp")(results(FLOAT, mine, worse_amp)).verdict == ("holds" if accuracy > 89.7 else "fails")
    assert reaches("seed-amp")(results(FLOAT, mine)).verdict == "not measured"
    assert reaches("amp")(results(mine, worse_amp)).verdict == "not measured"


def test_the_best_of_the_rest_is_the_cheapest_that_is_near_float32() -> None:
    rivals = (
        made("uniform:int3", 89.6, 10.0),
        made("uniform:int4/int5", 89.75, 15.0, "fine"),
        made("uniform:int8", 91.0, 25.0),
        made("cpt", 90.0, 20.0, "fine"),
        made("gradient", 90.0, 5.0, "fine"),  # adaptive, no rival
    )
    mine = made("numgeom", 89.8, 12.7, "fine")
    found = best_of_the_rest(results(FLOAT, mine, *rivals), "n")
    assert found is not None
    assert found[0] == "uniform:int4/int5"
    claim = reaches_best(results(FLOAT, mine, *rivals))
    assert claim.verdict == "holds"
    assert "15.3 % fewer than uniform:int4/int5 (28.3 % by the product of bits)" in claim.measured
    assert reaches_best(results(FLOAT, made("numgeom", 89.8, 12.8, "fine"), *rivals)).verdict == "fails"
    rows = reach_table(results(FLOAT, mine, *rivals)).rows
    assert [row[1] for row in rows] == ["float32", "uniform:int4/int5"]


def test_nearness_is_judged_over_equal_seeds() -> None:
    """A method that ran with the lucky seed alone must not look near float32."""
    exact = (made("float32", 90.0, 100.0), made("float32", 80.0, 100.0, seed=1))
    assert best_of_the_rest(results(*exact, made("uniform:int4", 88.0, 10.0)), "n") == ("float32", results(*exact))


LOOKS = {"steps": 1000, "promised_down": 38, "promised_up": 2, "unpromised_down": 0, "unpromised_up": 0}


def test_failures_are_foretold_by_the_descent_condition() -> None:
    dark = {**LOOKS, "promised_down": 10, "promised_up": 0}
    fails, works = made("uniform:int2", 10.0, 2.0, **dark), made("uniform:int8", 90.0, 8.0, **LOOKS)
    assert failures_foretold(results(FLOAT, fails, works)).verdict == "holds"
    assert failures_foretold(results(FLOAT, made("uniform:int2", 10.0, 2.0, **LOOKS))).verdict == "fails"
    assert failures_foretold(results(FLOAT, made("uniform:int2", 90.0, 2.0, **dark))).verdict == "fails"
    lost, kept = (
        made("combined", accuracy, 9.0, levels, **LOOKS) for accuracy, levels in ((10.0, "fine"), (90.0, "coarse"))
    )
    rows = failure_table(results(FLOAT, works, fails, lost, kept)).rows
    assert [row[1:] for row in rows] == [
        ("uniform:int2", "stochastic", 2.0, -80.0, "1 of 1", 0, 25, 0.0),
        ("uniform:int8", "stochastic", 8.0, 0.0, "0 of 1", 0, 100, 5.0),
        ("combined, fine levels", "stochastic", 9.0, -80.0, "1 of 1", 0, 100, 5.0),
    ]


@pytest.mark.parametrize(("up", "verdict"), [(3, "holds"), (1, "fails")])
def test_rises_where_nothing_was_promised(up: int, verdict: str) -> None:
    cell = made("sound", 90.0, 8.0, **{**LOOKS, "unpromised_up": up, "unpromised_down": 20 - up})
    assert rises_foretold(results(FLOAT, cell)).verdict == verdict


def test_what_the_optimizer_keeps() -> None:
    def kept(bits: int, accuracy: float, rounding: str) -> Result:
        options = {"optimizer": f"int{bits}", "stored": f"int{bits}"}
        return made(f"uniform:int{bits}", accuracy, 8.0, options=options, rounding=rounding)

    plain = made("uniform:int8", 90.0, 8.0)
    assert dead_zone(results(FLOAT, kept(8, 80.0, "nearest"), kept(8, 89.0, "stochastic"))).verdict == "holds"
    assert dead_zone(results(FLOAT, kept(8, 89.0, "nearest"), kept(8, 89.0, "stochastic"))).verdict == "fails"
    assert state_hurts_first(results(FLOAT, plain, kept(8, 89.0, "stochastic"))).verdict == "holds"
    assert state_hurts_first(results(FLOAT, plain, kept(8, 90.0, "stochastic"))).verdict == "fails"


def test_where_the_rules_differ() -> None:
    counts = {"both": 80, "layer-wise only": 20}
    assert rules_differ(results(made("sound", 90.0, 8.0, rules=counts))).verdict == "holds"
    assert rules_differ(results(made("sound", 90.0, 8.0, rules={**counts, "layer-wise only": 5}))).verdict == "fails"


def test_the_frontier_names_what_lies_far_below_instead_of_drawing_it() -> None:
    lost, near = made("uniform:int2", 10.0, 6.0), made("numgeom", 89.8, 12.5, "fine")
    figure = frontier(0)(results(FLOAT, lost, near))
    assert figure is not None
    assert {each.name: (each.x, each.y) for each in figure.series} == {
        "float32": ((100.0,), (90.0,)),
        "geoquant's numgeom, fine": ((12.5,), (89.8,)),
    }
    assert "uniform:int2 10.0 % at 6.0 %" in figure.note
    assert frontier(1)(results(FLOAT)) is None
