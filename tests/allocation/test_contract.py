"""Every registered solver keeps the laws: on ten thousand random problems, and against the true optimum."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from allocation.contract import check_against_exact, check_repeatable, check_solver
from allocation.problems import FUNCTIONS, best_value, random_problem
from geoquant.allocation import SOLVERS, Cost, Problem
from geoquant.errors import BudgetError, UnknownNameError

NAMES = SOLVERS.names()
EACH = -(-10_000 // len(NAMES))


@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("name", NAMES)
def test_no_budget_is_ever_exceeded(name: str, part: int) -> None:
    """Ten thousand problems among the solvers: fused groups, several budgets, prohibitions, ties; bounds hold."""
    solver, solved = SOLVERS[name], 0
    for number in range(part, EACH, 4):
        draw = np.random.default_rng([number, NAMES.index(name)])
        objective = "sum" if draw.random() < 0.9 else str(draw.choice(list(FUNCTIONS)[:3]))
        budgets = int(draw.choice([0, 1, 1, 1, 1, 1, 1, 2, 3]))
        sites, choices = int(draw.integers(1, 10)), int(draw.integers(1, 7))
        problem = random_problem(draw, sites, choices, budgets, objective, room=float(draw.choice([0.2, 0.6, 1.1])))
        solution = check_solver(solver, problem)
        if solution is not None:
            solved += 1
            check_against_exact(solution, problem)
    assert solved > 0.6 * EACH / 4, "too few of the random problems had a solution to test anything"


@pytest.mark.parametrize("objective", FUNCTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_bounds_hold_against_the_true_optimum(name: str, objective: str) -> None:
    for number in range(40):
        draw = np.random.default_rng([7, number])
        problem = random_problem(draw, int(draw.integers(1, 5)), int(draw.integers(1, 5)), number % 4, objective)
        check_solver(SOLVERS[name], problem, best_value(problem))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_laws_on_adversarial_problems(name: str, data: st.DataObject) -> None:
    """Hypothesis shrinks what goes wrong to a readable problem."""
    sites, choices = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    damages = st.one_of(st.integers(-2, 5).map(float), st.floats(-1e-3, 1e6), st.sampled_from([1e-9, 1e3, np.inf]))

    def table(values):
        return np.array(data.draw(st.lists(values, min_size=sites * choices, max_size=sites * choices)))

    damage = table(damages).reshape(sites, choices)
    damage[~np.isfinite(damage).any(axis=1), 0] = 1.0
    costs = tuple(
        Cost(f"unit{i}", table(st.integers(0, 9)).reshape(sites, choices), data.draw(st.integers(-1, 30)))
        for i in range(data.draw(st.integers(0, 2)))
    )
    groups = ((0, 1),) if sites > 1 and np.isfinite(damage[:2]).all(axis=0).any() and data.draw(st.booleans()) else ()
    objective = FUNCTIONS[data.draw(st.sampled_from(sorted(FUNCTIONS)))]
    problem = Problem(damage, costs, groups, objective=objective)
    check_solver(SOLVERS[name], problem, best_value(problem))


@pytest.mark.parametrize("objective", FUNCTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_the_same_problem_gives_the_same_solution(name: str, objective: str) -> None:
    draw = np.random.default_rng(3)
    check_repeatable(SOLVERS[name], random_problem(draw, 12, 5, 1, objective, room=1.0))


@pytest.mark.parametrize("name", NAMES)
def test_one_site_with_one_choice(name: str) -> None:
    solution = SOLVERS[name](Problem([[0.5]], (Cost("bits", [[8]], 8),)))
    assert (solution.selection.tolist(), solution.objective, solution.costs) == ([0], 0.5, (8,))
    assert solution.gap < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_the_smallest_plan_is_named_when_the_budget_is_below_it(name: str) -> None:
    problem = Problem(np.ones((2, 2)), (Cost("bits", [[60, 90], [100, 200]], 159),))
    with pytest.raises(BudgetError, match="159 bits is below the smallest possible plan, which takes 160 bits"):
        SOLVERS[name](problem)
    assert SOLVERS[name](Problem(np.ones((2, 2)), (Cost("bits", [[60, 90], [100, 200]], 160),))).costs == (160,)


@pytest.mark.parametrize("name", NAMES)
def test_budgets_that_exclude_each_other(name: str) -> None:
    """Each can be met alone; no selection meets both."""
    problem = Problem(np.ones((1, 2)), (Cost("bits", [[1, 9]], 5), Cost("cycles", [[9, 1]], 5)))
    with pytest.raises(BudgetError, match=r"5 bits \(at least 1\), 5 cycles \(at least 1\)"):
        SOLVERS[name](problem)


@pytest.mark.parametrize("name", NAMES)
def test_groups_and_fixed_sites_are_kept(name: str) -> None:
    draw = np.random.default_rng(5)
    damage = 10 ** draw.uniform(-3, 0, (6, 1)) * 4.0 ** -np.arange(4)
    bits = Cost("bits", draw.integers(1, 100, (6, 1)) * np.arange(2, 6), 1500)
    selection = SOLVERS[name](
        Problem(damage, (bits,), groups=((0, 3), (1, 5)), widths=[2, 3, 4, 5]).fix(2, 3)
    ).selection
    assert selection[0] == selection[3]
    assert selection[1] == selection[5]
    assert selection[2] == 3


def test_an_unknown_solver_is_suggested_a_known_one() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'greedy'"):
        SOLVERS["greedi"]
