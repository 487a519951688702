"""What follows from given measurements."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from geoquant.basin import THRESHOLDS, Candidate, Evidence, Radius, Thresholds, Width, decide
from geoquant.basin.diagnosis import constructive_failure, layers_to_train, remedy_for
from geoquant.evaluation import Mean


def sure(value: float, stderr: float = 0.0) -> Mean:
    return Mean(value, stderr, 100)


def evidence(nearest: float, rounded: float | None, trained: float | None) -> Evidence:
    left = None if trained is None else sure(trained)
    better = None if rounded is None else sure(rounded)
    return Evidence(0.05, sure(nearest), better, left, 0.5, 0.1, 0.2)


LIMIT = 0.05 * THRESHOLDS.trained


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (evidence(-0.01, 1.0, 1.0), "ptq"),
        (evidence(0.05, 1.0, 1.0), "ptq"),
        (evidence(0.02, None, None), "ptq"),
        (evidence(0.051, 0.049, 1.0), "better-rounding"),
        (evidence(9.0, 0.06, 0.99 * LIMIT), "qat"),
        (evidence(9.0, 2.0, 1.01 * LIMIT), "infeasible"),
        (evidence(9.0, 0.99 * LIMIT, 1.01 * LIMIT), "qat"),
        (evidence(9.0, 0.99 * LIMIT, None), "qat"),
        (evidence(9.0, 1.01 * LIMIT, None), "infeasible"),
        (evidence(math.inf, math.inf, math.inf), "infeasible"),
    ],
)
def test_the_first_that_suffices_is_the_verdict(found: Evidence, verdict: str) -> None:
    assert decide(found)[0] == verdict


def test_reasons_stop_where_the_verdict_falls_and_own_up_to_close_calls() -> None:
    assert len(decide(evidence(0.01, 1.0, 1.0))[1]) == 1
    assert len(decide(evidence(9.0, 0.06, 0.05))[1]) == 3
    assert "untrained" in decide(evidence(9.0, 0.06, 0.07))[1][2]
    close = replace(evidence(9.0, 0.06, 0.05), rounded=sure(0.06, 0.006))
    assert decide(close)[1][1].endswith("beyond 0.05, a close call")
    assert "close call" not in decide(replace(close, rounded=sure(0.06, 0.004)))[1][1]


def test_other_thresholds_give_other_verdicts() -> None:
    found = evidence(9.0, 0.2, 0.1)
    assert decide(found, Thresholds(trained=1.9))[0] == "infeasible"
    assert decide(found, Thresholds(trained=2.1))[0] == "qat"
    assert decide(found, Thresholds(rounded=4.1))[0] == "better-rounding"


def candidate(name: str, rise: float, weights_only: bool = True) -> Candidate:
    return Candidate(name, sure(rise), 0.4, weights_only)


def test_a_constructive_failure_needs_a_crossing_and_a_codeword_inside() -> None:
    found = constructive_failure(
        [candidate("nearest", 2.0), candidate("neighbours", 0.01), candidate("gptq", 0.3)], tolerance=0.05
    )
    assert found.crossed == ("nearest", "gptq")
    assert "straight-through" in found.found
    assert "although a low-loss codeword is near" in str(found)
    none = constructive_failure(
        [candidate("nearest", 2.0), candidate("descent, norms corrected", 0.01, weights_only=False)], 0.05
    )
    assert (none.crossed, none.found) == (("nearest",), "")  # corrected norms are another landscape
    assert "no low-loss codeword was found" in str(none)
    assert constructive_failure([candidate("nearest", 0.01), candidate("gptq", 0.02)], 0.05).crossed == ()
    by_gptq = constructive_failure([candidate("nearest", 2.0), candidate("gptq", 0.02)], 0.05)
    assert (by_gptq.crossed, by_gptq.found) == (("nearest",), "gptq")


def layer(name: str, rise: float) -> Width:
    return Width("displacement", "displacement", name, Radius(1, 1, 1, 2, 0.95, 3), 1.0, 0.3, sure(rise))


def test_the_fewest_layers_cover_all_but_half_the_tolerance() -> None:
    layers = [layer("a", 0.02), layer("b", 0.5), layer("c", 0.004), layer("d", -0.1), layer("e", 0.06)]
    assert layers_to_train(layers, 0.05) == ("b", "e")
    assert layers_to_train(layers, 0.04) == ("b", "e", "a")
    assert layers_to_train([layer("a", 0.001)], 0.05) == ()
    assert layers_to_train([layer("a", math.inf), layer("b", 0.0)], 0.05) == ("a",)


def test_every_verdict_has_its_remedy() -> None:
    near = constructive_failure([candidate("nearest", 2.0), candidate("neighbours", 0.01)], 0.05)
    assert "gq.quantize_(model, plan) " in remedy_for("ptq", (), near)
    assert "calibration" in remedy_for("better-rounding", (), near)
    assert "gq.recover_" in remedy_for("qat", ("a", "b"), near)
    assert "refine='network'" in remedy_for("qat", ("a", "b"), near)
    assert "first of all to a, b" in remedy_for("infeasible", ("a", "b"), near)
