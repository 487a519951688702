"""The verdict is right when geoquant wins, loses, ties, and when nothing can be said."""

from __future__ import annotations

import pytest

from geoquant.report import compare, scoreboard, verdict


def test_a_win_states_both_numbers_and_all_sizes(point) -> None:
    points = [
        point("geoquant", "a", 21_344, 0.975, stderr=0.004),
        point("geoquant", "b", 30_000, 0.980, stderr=0.004),
        point("uniform", "int3", 21_400, 0.930, stderr=0.004),
        point("uniform", "int3:affine", 21_600, 0.951, stderr=0.004),
        point("uniform", "int4", 30_100, 0.979, stderr=0.004),
    ]
    result = verdict(points)
    assert result.outcome == "better"
    assert result.text == (
        "At 21,344 bytes geoquant's plan keeps 97.5 % where the best uniform grid (int3:affine, 21,600 bytes) keeps "
        "95.1 %. Of 2 sizes compared, the plan is better at 1 and no different beyond two standard errors at 1."
    )


def test_a_tie_says_that_uniform_is_as_good(point) -> None:
    points = [
        point("geoquant", "a", 10_000, 0.971, kl=0.02, stderr=0.008),
        point("uniform", "int4", 10_000, 0.969, kl=0.05, stderr=0.008),
    ]
    result = verdict(points)
    assert result.outcome == "equal"
    assert result.text.startswith("Uniform is as good here: at 10,000 bytes geoquant's plan keeps 97.1 %")
    assert "(±2.3 points; KL to the float model 0.02 against 0.05 nats)" in result.text


def test_exactly_equal_accuracies_without_error_are_a_tie(point) -> None:
    points = [point("geoquant", "a", 10_000, 0.9, stderr=0.0), point("uniform", "int4", 10_000, 0.9, stderr=0.0)]
    assert verdict(points).outcome == "equal"


def test_ties_everywhere_are_said_in_one_breath(point) -> None:
    points = [
        point(method, "int4", size, 0.97, stderr=0.01) for method in ("geoquant", "uniform") for size in (100, 200)
    ]
    text = verdict(points).text
    assert text.endswith("At all 2 sizes compared, the plan is no different beyond two standard errors.")


def test_a_loss_is_called_one(point) -> None:
    points = [point("geoquant", "a", 10_000, 0.5), point("uniform", "int4", 10_000, 0.6)]
    result = verdict(points)
    assert result.outcome == "worse"
    assert "keeps only 50.0 % where the best uniform grid (int4, 10,000 bytes) keeps 60.0 %" in result.text


def test_one_good_size_cannot_hide_a_worse_loss(point) -> None:
    points = [
        point("geoquant", "a", 10_000, 0.60),
        point("uniform", "int2", 10_000, 0.50),
        point("geoquant", "b", 20_000, 0.60),
        point("uniform", "int4", 20_000, 0.90),
    ]
    result = verdict(points)
    assert result.outcome == "mixed"
    assert "keeps only 60.0 %" in result.text
    assert "better at 1 and worse at 1" in result.text


def test_a_method_other_than_geoquant_is_named(point) -> None:
    points = [point("weight_error + milp", "a", 10_000, 0.9), point("uniform", "int4", 10_000, 0.5)]
    assert "the weight_error + milp plan keeps 90.0 %" in verdict(points).text


def test_only_the_first_method_speaks(point) -> None:
    points = [
        point("geoquant", "a", 10_000, 0.50),
        point("lucky", "a", 10_000, 0.99),
        point("uniform", "int4", 10_000, 0.50),
    ]
    assert verdict(points).outcome == "equal"
    assert scoreboard(points)["lucky"][0].outcome == "better"


@pytest.mark.parametrize(("size", "count"), [(10_500, 1), (10_501, 0), (9_500, 1), (9_499, 0)])
def test_rivals_are_within_five_percent(point, size: int, count: int) -> None:
    points = [point("geoquant", "a", 10_000, 0.9), point("uniform", "int4", size, 0.5)]
    assert len(compare(points, "geoquant")) == count


def test_the_best_rival_may_be_smaller(point) -> None:
    points = [
        point("geoquant", "a", 10_000, 0.9),
        point("uniform", "int4", 10_000, 0.5),
        point("uniform", "int3:affine", 8_000, 0.7),
        point("uniform", "int5", 12_000, 0.99),
    ]
    (pair,) = compare(points, "geoquant")
    assert pair.uniform.label == "int3:affine"


def test_nothing_is_claimed_without_evidence(point) -> None:
    assert "no plan was evaluated" in verdict([]).text
    assert "only uniform grids" in verdict([point("uniform", "int4", 10_000, 0.5)]).text
    far = verdict([point("geoquant", "a", 10_000, 0.9), point("uniform", "int4", 20_000, 0.5)])
    assert far.outcome == "none"
    assert "within 5 %" in far.text
