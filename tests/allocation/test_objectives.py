"""The worst damage and functions of all damages: exact where they say so, honest where they stop."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from allocation.problems import best_value, enumerate_selections, random_problem
from geoquant.allocation import Cost, Problem, check_monotone, solve
from geoquant.allocation.monotone import function_bound, least_function
from geoquant.allocation.worst import least_worst
from geoquant.errors import PlanError


@pytest.mark.parametrize("budgets", [1, 2])
def test_the_sum_decides_between_equals_in_the_worst(budgets: int) -> None:
    """Lexicographic optimum by counting: best worst damage, then best sum."""
    for number in range(40):
        draw = np.random.default_rng([29, number])
        problem = random_problem(draw, 4, 4, budgets, "worst", room=1.0)
        every = [(problem.value(s), math.fsum(problem.damages(s))) for s in enumerate_selections(problem)]
        if every:
            answer = least_worst(problem)
            worst, total = problem.value(answer.selection), math.fsum(problem.damages(answer.selection))
            assert worst == min(every)[0]
            assert total == pytest.approx(min(every)[1], rel=1e-9, abs=1e-9)
            assert answer.bound == worst


def test_the_worst_case_does_not_starve_to_save_the_sum() -> None:
    """Negative twin of the sum: one layer may not be sacrificed for many."""
    damage = [[10.0, 1.0]] + [[6.0, 0.0]] * 2
    problem = Problem(damage, (Cost("bits", [[0, 2], [0, 1], [0, 1]], 2),))
    assert solve(problem).selection.tolist() == [0, 1, 1]
    assert solve(replace(problem, objective="worst")).selection.tolist() == [1, 0, 0]


@pytest.mark.parametrize("power", [1, 2, 5])
def test_functions_are_solved_exactly_when_small(power: int) -> None:
    def norm(damages: np.ndarray) -> float:
        return float((np.maximum(damages, 0) ** power).sum())

    for number in range(15):
        problem = replace(random_problem(np.random.default_rng([31, number]), 5, 4), objective=norm)
        best = best_value(problem)
        if not math.isinf(best):
            answer = least_function(problem)
            assert problem.value(answer.selection) == pytest.approx(best, rel=1e-12, abs=1e-300)
            assert "optimal" in answer.notes[0]


@pytest.mark.parametrize("evaluations", [0, 3, 8])
def test_an_unfinished_search_still_gives_a_true_bound(evaluations: int) -> None:
    unfinished = tightened = 0
    for number in range(30):
        draw = np.random.default_rng([37, number])
        problem = random_problem(draw, 5, 4, 1, "sum and worst", room=1.0)
        best = best_value(problem)
        if math.isinf(best):
            continue
        answer = least_function(problem, evaluations)
        assert problem.fits(answer.selection)
        assert answer.bound <= best + 1e-9 * abs(best)
        unfinished += "unfinished" in answer.notes[0]
        tightened += answer.bound > function_bound(problem)
    assert unfinished > 0, "the limit was never met, so nothing was tested"
    assert tightened > 0 or evaluations == 0, "the search must improve on its root"


def test_a_separable_function_is_linearised_exactly() -> None:
    """Sixty layers, weighted squares: the same optimum as the knapsack of the squared damages."""
    draw = np.random.default_rng(41)
    damage = draw.uniform(1, 3, (60, 1)) * 2.0 ** -np.arange(2, 7)
    weights = draw.uniform(1, 5, 60)
    bits = Cost("bits", draw.integers(10, 99, (60, 1)) * np.arange(2, 7), 12_000)
    squares = Problem(weights[:, None] * damage**2, (bits,))
    problem = Problem(damage, (bits,), objective=lambda d: float(weights @ d**2))
    assert solve(problem).objective == pytest.approx(solve(squares).objective, rel=1e-12)


def test_groups_move_together_under_a_function() -> None:
    problem = Problem(
        [[2.0, 1.0], [1.0, 5.0], [3.0, 0.0]],
        (Cost("bits", [[0, 1]] * 3, 2),),
        groups=((0, 1),),
        objective=lambda d: float(d.max() + 0.1 * d.sum()),
    )
    solution = solve(problem)
    assert solution.selection.tolist() == [0, 0, 1]
    assert solution.gap == 0.0


def test_a_function_that_overflows_to_infinity_is_still_ordered() -> None:
    """Infinite is a legitimate value: a hard limit on one site's damage."""
    problem = Problem(
        [[2.0, 0.5], [3.0, 0.0]],
        (Cost("bits", [[0, 1], [0, 1]], 1),),
        objective=lambda d: math.inf if d[0] > 1 else float(d.sum()),
    )
    assert solve(problem).selection.tolist() == [1, 0]


def test_check_monotone_finds_a_fall_in_one_site_among_many() -> None:
    damage = np.random.default_rng(0).random((10, 4))
    check_monotone(lambda d: float(d.sum()), damage)
    with pytest.raises(PlanError, match="never falls when a damage rises"):
        check_monotone(lambda d: float(d.sum() - 3 * d[7]), damage)
