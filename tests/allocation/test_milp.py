"""Is the exact solver exact, at every scale, and by every road it can take?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from allocation.contract import rounding_of
from allocation.problems import FUNCTIONS, best_value, enumerate_selections, random_problem
from geoquant.allocation import SOLVERS, Cost, Problem, exact, solve
from geoquant.errors import BudgetError, PlanError


def dense_table(problem: Problem) -> float:
    """Textbook dynamic programme over every integer cost: the oracle for sums with one small budget."""
    (cost,) = problem.costs
    best = np.full(cost.limit + 1, np.inf)
    best[0] = 0.0
    for site in range(problem.n_sites):
        after = np.full_like(best, np.inf)
        for choice in np.flatnonzero(problem.mask[site]):
            used = int(cost.table[site, choice])
            if used <= cost.limit:
                shifted = best[: len(best) - used] + problem.damage[site, choice]
                after[used:] = np.minimum(after[used:], shifted)
        best = after
    return float(best.min())


def network(seed: int, sites: int, choices: int, spread: float = 0.5, average: float = 3.5) -> Problem:
    """Layers as they come: sizes and sensitivities over decades, damages that fall roughly as 4**-bits."""
    draw = np.random.default_rng(seed)
    sizes = (10 ** draw.uniform(2, 6, sites)).astype(int)
    widths = np.arange(2, 2 + choices)
    damage = (
        10 ** draw.uniform(-6, 1, (sites, 1)) * 4.0**-widths * 10 ** draw.uniform(-spread, spread, (sites, choices))
    )
    bits = sizes[:, None] * widths + 16 * draw.integers(8, 512, (sites, 1))
    return Problem(damage, (Cost("bits", bits, int(sizes.sum() * average)),), weights=sizes, widths=widths)


@pytest.mark.parametrize("objective", FUNCTIONS)
def test_equals_brute_force(objective: str) -> None:
    for number in range(80):
        draw = np.random.default_rng([11, number])
        problem = random_problem(draw, int(draw.integers(1, 6)), int(draw.integers(1, 5)), number % 4, objective)
        best = best_value(problem)
        if np.isinf(best):
            with pytest.raises(BudgetError):
                solve(problem)
            continue
        solution = solve(problem)
        slack = rounding_of(problem, solution.selection)
        assert abs(solution.objective - best) <= 1e-9 * abs(best) + slack
        assert solution.gap <= 1e-6


@pytest.mark.parametrize("seed", range(6))
def test_equals_a_dense_dynamic_programme(seed: int) -> None:
    """Beyond brute force: 8**40 selections."""
    draw = np.random.default_rng(seed)
    damage = 10 ** draw.uniform(-6, 2, (40, 8))
    problem = Problem(damage, (Cost("bits", draw.integers(0, 200, (40, 8)), int(draw.integers(800, 4000))),))
    solution = solve(problem)
    assert solution.objective == pytest.approx(dense_table(problem), rel=1e-12)
    assert solution.gap == 0.0


@pytest.mark.parametrize("objective", FUNCTIONS)
def test_never_worse_than_another_solver(objective: str) -> None:
    """A sum or a worst case is solved exactly; a function at least from the better of both."""
    for seed in range(3):
        problem = replace(network(seed, 25, 5), objective=FUNCTIONS[objective])
        values = {name: solve(problem, name).objective for name in SOLVERS.names()}
        assert values["milp"] == min(values.values()), values


@pytest.mark.parametrize("spread", [0.0, 0.5, 2.0])
def test_sixty_layers_are_solved_exactly(spread: float) -> None:
    for seed in range(5):
        assert solve(network(seed, 60, 7, spread)).gap <= 1e-9


@pytest.mark.parametrize("average", [2.05, 3.0, 7.5])
def test_a_thousand_layers_to_a_gap_of_one_in_ten_thousand(average: float) -> None:
    solution = solve(network(1, 1000, 8, 0.5, average))
    assert solution.gap <= 1e-4


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1e9, 1e30])
def test_the_unit_of_damage_does_not_matter(scale: float) -> None:
    """Tolerances must be relative: HiGHS alone would call everything below 1e-7 zero."""
    problem = network(4, 60, 7)
    scaled = replace(problem, damage=problem.damage * scale)
    expected = problem.value(solve(problem).selection)
    solution = solve(scaled)
    assert problem.value(solution.selection) == pytest.approx(expected, rel=1e-12)
    assert solution.gap <= 1e-9


@pytest.mark.parametrize("offset", [1.0, 1e3])
def test_a_common_offset_does_not_matter(offset: float) -> None:
    problem = network(5, 30, 6)
    lifted = replace(problem, damage=problem.damage + offset)
    assert problem.value(solve(lifted).selection) == pytest.approx(solve(problem).objective, rel=1e-9)


def test_tiny_damages_beside_a_huge_one() -> None:
    """One layer of damage 1000 must not blind the solver to choices worth a billionth of it."""
    draw = np.random.default_rng(0)
    damage = np.vstack([[1000.0, 999.0, 998.0], 1e-6 * draw.uniform(0, 1, (8, 3))])
    problem = Problem(damage, (Cost("bits", draw.integers(1, 9, (9, 3)), 45),))
    solution = solve(problem)
    rest = [problem.damages(s)[1:].sum() for s in enumerate_selections(problem.fix(0, int(solution.selection[0])))]
    assert problem.damages(solution.selection)[1:].sum() == pytest.approx(min(rest), rel=1e-6)


@pytest.mark.parametrize("budgets", [1, 2, 3])
def test_highs_alone_reaches_the_optimum(monkeypatch: pytest.MonkeyPatch, budgets: int) -> None:
    """With the dynamic programme switched off, HiGHS's road gives the same optimum and a true bound."""
    monkeypatch.setattr(exact, "STATES", ())
    for number in range(40):
        draw = np.random.default_rng([13, number, budgets])
        problem = random_problem(draw, int(draw.integers(3, 6)), int(draw.integers(2, 5)), budgets)
        best = best_value(problem)
        if np.isinf(best):
            continue
        solution = solve(problem)
        slack = rounding_of(problem, solution.selection)
        assert solution.objective == pytest.approx(best, rel=1e-6, abs=slack)
        assert solution.lower_bound <= best + slack
        assert solution.gap <= 1e-4 or abs(best) < slack


def test_the_road_is_told() -> None:
    assert "optimal: dynamic programming over a core of" in solve(network(1, 60, 7)).notes[0]


def test_merged_groups_cost_what_their_members_cost() -> None:
    """Fusing can only make the optimum worse, and fusing equal layers changes nothing."""
    problem = network(6, 20, 5)
    free, fused = solve(problem), solve(replace(problem, groups=((0, 1, 2), (3, 9))))
    assert fused.objective >= free.objective
    assert fused.selection[0] == fused.selection[1] == fused.selection[2]
    twin = Problem([[4.0, 1.0]] * 2, (Cost("bits", [[1, 2]] * 2, 4),), groups=((0, 1),))
    assert solve(twin).objective == 2.0


def test_a_huge_capacity_and_no_budget_give_the_least_damage() -> None:
    damage = np.array([[3.0, -0.001, 2.0], [1.0, 5.0, 0.5]])
    for costs in [(), (Cost("bits", np.ones((2, 3)), 10**30),)]:
        solution = solve(Problem(damage, costs))
        assert solution.selection.tolist() == [1, 2]
        assert solution.gap <= 1e-12


def test_costs_are_exact_where_floats_would_not_be() -> None:
    """A budget one unit short of 2**52 forbids what a float tolerance of 1e-6 would let through."""
    large = 2**51
    problem = Problem([[1.0, 0.0], [1.0, 0.0]], (Cost("bits", [[1, large], [1, large + 1]], 2 * large),))
    solution = solve(problem)
    assert solution.objective == 1.0
    assert solution.costs[0] <= 2 * large
    assert solve(replace(problem, costs=(replace(problem.costs[0], limit=2 * large + 1),))).objective == 0.0


def test_an_objective_that_falls_is_refused() -> None:
    with pytest.raises(PlanError, match="falls from"):
        solve(Problem([[1.0, 2.0], [3.0, 4.0]], objective=lambda damages: -float(damages[0])))


def test_an_objective_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(PlanError, match="NaN"):
        solve(Problem([[1.0, 2.0]], objective=lambda damages: float("nan")))
