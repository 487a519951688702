"""The document's theorem tests have known answers; its tables and claims follow the cells."""

from __future__ import annotations

import math
from typing import Any

import pytest

from geoquant.study.results import Result, Results
from geoquant.study.studies.transformer_quantization.cells import GUIDED, OURS, UNIFORM, oracles, run
from geoquant.study.studies.transformer_quantization.reading import (
    attention_needs,
    better,
    components,
    composed,
    example_bits,
    fewer_bits,
    no_algorithm,
    recommended,
    softmax,
    strategies,
    timed,
)


@pytest.fixture(scope="module")
def known() -> dict[str, Any]:
    return oracles({})


def test_two_thousand_outputs_suffice_and_one_fewer_do_not(known: dict[str, Any]) -> None:
    assert known["outputs"] == 2000
    assert known["error_of_outputs"] <= known["tolerance"] * (1 + 1e-9) < known["error_of_one_fewer"]
    assert known["bits_of_document"] - known["bits_of_outputs"] == pytest.approx(3)  # the document lacks c = 1/8


def test_composition_softmax_and_strategies(known: dict[str, Any]) -> None:
    assert known["composed"] == pytest.approx(2.8)
    assert known["counted_twice"] > known["composed"]
    assert 0.1 < known["largest_seen_over_bound"] <= 1
    assert known["softmax_curvature"] == pytest.approx(known["softmax_curvature_shifted"], rel=1e-6)
    assert 0 < known["softmax_curvature"] <= 1 / (3 * math.sqrt(6)) + 1e-9
    assert known["best_bits_for_1_and_16"] == [4, 8]  # b ∝ log κ would be 0 and 12
    assert known["proportional_over_exact"] > known["greedy_over_exact"] >= 1


def test_claims_on_the_theorems(known: dict[str, Any]) -> None:
    found = Results((Result({"part": "oracles"}, known),), "again")
    claims = (no_algorithm, softmax, composed, example_bits)
    assert [claim(found).verdict for claim in claims] == ["fails", "fails", "holds", "fails"]
    assert strategies(found).verdict in ("partly", "fails")
    twice = Results((Result({"part": "oracles"}, {**known, "composed": 9.9, "largest_seen_over_bound": 1.5}),))
    assert composed(twice).verdict == "fails"


def test_guided_and_uniform_of_a_net_take_the_same_size() -> None:
    sizes = {"images": 300, "epochs": 3, "calibration": 64, "test": 100}
    found = run({"part": "mnist", "net": "digits_cnn", "data": "digits", "seed": 0, **sizes})
    limit = {row["bits"]: row["average_bits"] for row in found["rows"] if row["method"] == UNIFORM}
    assert set(limit) == {8, 6, 4, 3, 2}
    for row in found["rows"]:
        assert row["average_bits"] <= limit[row["bits"]] * (1 + 1e-9)
    at_8 = [row["accuracy"] for row in found["rows"] if row["bits"] == 8 and row["method"] == UNIFORM]
    assert abs(at_8[0] - found["accuracy_float"]) <= 2


def table(guided: float, uniform: float = 90.0) -> Results:
    methods = {UNIFORM: uniform, GUIDED: guided, OURS: 91.0}
    rows = tuple(
        {"bits": bits, "method": method, "accuracy": value} for bits in (8, 6) for method, value in methods.items()
    )
    configuration = {"part": "mnist", "net": "n", "data": "d", "seed": 0}
    return Results((Result(configuration, {"accuracy_float": 91.0}, rows),), "again")


def test_guided_is_better_by_the_documents_points() -> None:
    assert [better(6, 1.2)(table(guided)).verdict for guided in (91.3, 91.0)] == ["holds", "fails"]
    assert [fewer_bits(table(guided)).verdict for guided in (91.0, 90.0)] == ["holds", "fails"]


def test_times_are_judged_at_the_documents_number_of_batches() -> None:
    def cell(seconds: float, batches: int = 100) -> Results:
        metrics = {"seconds_total": seconds, "weights": 10_000_000}
        return Results((Result({"part": "times", "batches": batches, "pixels": 32}, metrics),))

    verdicts = [timed("total")(each).verdict for each in (cell(10), cell(30), cell(10, batches=3))]
    assert verdicts == ["holds", "fails", "not measured"]


def layer(part: str, bits: int, trace: float) -> dict[str, Any]:
    measures = {"condition_number": 5.0, "spectral_norm": 1.0, "trace_per_weight": trace}
    return {"layer": part, "part": part, **measures, "bits_alone": 3, "bits_exact": bits, "bits_guided": 6}


def test_components_and_what_they_are_recommended() -> None:
    rows = tuple(layer(*each) for each in (("q", 8, 1.0), ("q", 10, 3.0), ("feed-forward", 8, 2.0)))
    assert components(rows)["q"]["bits_exact"] == 9
    assert components(rows)["q"]["trace_per_weight"] == 2
    harm = {"kl_attention": 1.0, "weights_attention": 10, "kl_feed_forward": 3.0, "weights_feed_forward": 20}
    found = Results((Result({"part": "transformer", "net": "n"}, harm, rows),))
    assert recommended(found).verdict == "partly"  # queries as recommended, feed-forward not
    assert attention_needs(found).verdict == "fails"  # 0.1 against 0.15 nats a weight
