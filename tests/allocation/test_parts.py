"""Do the parts of the exact solver hold what they promise, each on its own?"""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
from scipy import optimize

from allocation.problems import best_value, enumerate_selections, random_problem
from geoquant.allocation import Cost, Problem, exact, exchange, feasibility, highs, lower_bound
from geoquant.allocation.core import core_of
from geoquant.allocation.instance import Instance, dominated
from geoquant.allocation.lagrangian import hull_segments, priced, relax
from geoquant.allocation.sweep import sweep


def shelf(budgets: int, count: int = 40, sites: int = 4, choices: int = 4):
    """Feasible small problems with their normal forms and true optima."""
    for number in range(count):
        draw = np.random.default_rng([17, number, budgets])
        problem = random_problem(draw, sites, choices, budgets).merged().problem
        instance = Instance.of(problem)
        best = best_value(problem)
        if instance is not None and not math.isinf(best):
            yield problem, instance, best


def total(instance: Instance, selection: np.ndarray) -> float:
    """The sum of damages of a selection."""
    return float(instance.damage[np.arange(len(selection)), selection].sum())


def instance_values(instance: Instance) -> list[float]:
    """All feasible sums of a normal form."""
    if not len(instance.damage):
        return [0.0]
    problem = Problem(
        instance.damage,
        tuple(Cost("unit", table, int(limit)) for table, limit in zip(instance.cost, instance.capacity, strict=True)),
    )
    return [problem.value(selection) for selection in enumerate_selections(problem)]


@pytest.mark.parametrize("budgets", range(4))
def test_the_normal_form_keeps_the_optimum(budgets: int) -> None:
    for problem, instance, best in shelf(budgets):
        assert min(instance_values(instance)) == best
        assert (instance.cost >= 0).all()
        assert (np.where(instance.present, instance.cost, 10**9).min(axis=2, initial=10**9) == 0).all()
        for selection in enumerate_selections(problem):
            inside = instance.present[np.arange(len(selection)), selection].all()
            assert not inside or instance.fits(selection), "a feasible selection became infeasible"


def test_the_normal_form_of_an_impossible_budget_is_none() -> None:
    assert Instance.of(Problem([[1.0, 2.0]], (Cost("bits", [[3, 4]], 2),))) is None


def test_dominance_is_only_over_all_budgets() -> None:
    """Negative twin: better in damage and one budget is not enough with a second budget."""
    damage, first, second = np.array([[1.0, 2.0]]), [[1, 2]], [[5, 1]]
    assert dominated(damage, np.array([first])).tolist() == [[False, True]]
    assert dominated(damage, np.array([first, second])).tolist() == [[False, False]]


def test_proportional_budgets_become_one() -> None:
    table = np.array([[0, 1], [0, 1], [0, 1]])
    problem = Problem([[1.0, 0.0]] * 3, (Cost("bits", 8 * table, 23), Cost("bytes", table, 1)))
    assert Instance.of(problem).capacity.tolist() == [1]


def linear_bound(instance: Instance) -> float:
    """The relaxation by scipy's linear solver, straight from the textbook."""
    site, choice = np.nonzero(instance.present)
    rows = np.array([site == i for i in range(len(instance.damage))], float)
    limits = instance.cost[:, site, choice] if len(instance.capacity) else None
    answer = optimize.linprog(
        instance.damage[site, choice],
        A_ub=limits,
        b_ub=instance.capacity if limits is not None else None,
        A_eq=rows,
        b_eq=np.ones(len(rows)),
        bounds=(0, 1),
    )
    return float(answer.fun)


@pytest.mark.parametrize("budgets", range(4))
def test_the_dual_bound_is_below_the_optimum_and_equals_the_relaxation(budgets: int) -> None:
    attained = 0
    for _, instance, best in shelf(budgets):
        relaxed = relax(instance)
        scale = np.abs(instance.damage[instance.present]).max() * len(instance.damage)
        assert relaxed.bound <= best + 1e-12 * scale
        assert relaxed.bound == pytest.approx(linear_bound(instance), rel=1e-6, abs=1e-6 * scale)
        attained += abs(relaxed.bound - best) <= 1e-9 * scale
        for prices in np.random.default_rng(1).exponential(1.0, (5, len(instance.capacity))):
            assert priced(instance, prices)[0] <= best + 1e-12 * scale, "wrong prices must weaken, never break"
    assert attained > 0, "the bound is never tight"


def test_hull_segments_are_the_lower_hull() -> None:
    damage, cost = np.array([[9.0, 6.0, 2.0, 1.9, 0.0]]), np.array([[[0, 1, 2, 3, 4]]])
    segments = hull_segments(Instance(damage, cost, np.array([4])))
    assert segments.choice.tolist() == [2, 4]
    assert segments.ratio.tolist() == [3.5, 1.0]
    assert segments.cost.tolist() == [2, 2]


@pytest.mark.parametrize("budgets", [1, 2, 3])
def test_a_complete_sweep_is_the_optimum(budgets: int) -> None:
    for _, instance, best in shelf(budgets):
        swept = sweep(instance, math.inf, states=10_000)
        assert swept.complete
        assert total(instance, swept.selection) == pytest.approx(best, rel=1e-12, abs=1e-15)
        nothing_better = sweep(instance, best, states=10_000)
        assert nothing_better.complete
        if nothing_better.selection is not None:  # the same value up to rounding
            again = total(instance, nothing_better.selection)
            assert again == pytest.approx(best, rel=1e-12, abs=1e-15)


def test_a_narrow_sweep_says_that_it_proves_nothing() -> None:
    """Some problem must actually be missed by a beam of one, or the flag would be decoration."""
    missed = 0
    for _, instance, best in shelf(1):
        swept = sweep(instance, math.inf, states=1)
        if swept.selection is not None:
            value = total(instance, swept.selection)
            assert instance.fits(swept.selection)
            wrong = value > best + 1e-9 * abs(best)
            assert not (wrong and swept.complete)
            missed += wrong
    assert missed > 0


@pytest.mark.parametrize("budgets", [1, 2])
def test_the_core_holds_every_better_selection(budgets: int) -> None:
    for problem, instance, best in shelf(budgets):
        relaxed = relax(instance)
        for value in sorted({problem.value(s) for s in enumerate_selections(problem)})[1:4]:
            core = core_of(instance, relaxed, value)
            assert core is not None, "something better exists"
            assert best == pytest.approx(
                min(instance_values(core.instance), default=0.0) + sum(core.offset(instance.damage))
            )


@pytest.mark.parametrize("budgets", [1, 2, 3])
def test_exchange_never_worsens_and_stays_feasible(budgets: int) -> None:
    improved = 0
    for problem, instance, _ in shelf(budgets):
        flat = np.where(instance.present, 0.0, np.inf)
        for selection in list(enumerate_selections(problem))[:3]:
            if not instance.present[np.arange(len(selection)), selection].all():
                continue
            better = exchange.improve(instance, selection, flat)
            assert problem.fits(better)
            assert problem.value(better) <= problem.value(selection)
            improved += problem.value(better) < problem.value(selection)
    assert improved > 10


def test_exchange_finds_a_swap_that_no_single_change_reaches() -> None:
    instance = Instance(np.array([[5.0, 0.0], [4.0, 0.0]]), np.array([[[0, 2], [0, 2]]]), np.array([3]))
    assert exchange.improve(instance, np.array([0, 1]), np.zeros((2, 2))).tolist() == [1, 0]


@pytest.mark.parametrize("budgets", [2, 3])
def test_feasibility_agrees_with_counting(budgets: int) -> None:
    impossible = 0
    for number in range(60):
        draw = np.random.default_rng([19, number, budgets])
        tables = draw.integers(0, 10, (budgets, 4, 4))
        tables[1] = 9 - tables[0]  # what one budget saves, the other pays
        limits = draw.integers(12, 25, budgets)
        costs = (Cost(f"unit{i}", table, limit) for i, (table, limit) in enumerate(zip(tables, limits, strict=True)))
        problem = Problem(draw.random((4, 4)), tuple(costs))
        instance = Instance.of(problem)
        if instance is None:
            continue
        found = feasibility.any_feasible(instance)
        possible = any(True for _ in enumerate_selections(problem))
        assert (found.selection is not None) == possible
        assert found.impossible == (not possible)
        assert found.selection is None or problem.fits(found.selection)
        impossible += not possible
    assert 10 < impossible < 50


@pytest.mark.parametrize("objective", ["sum", "worst"])
def test_lower_bounds_without_solving(objective: str) -> None:
    for number in range(40):
        draw = np.random.default_rng([23, number])
        problem = random_problem(draw, 4, 4, 1 + number % 2, objective, room=1.0)
        best = best_value(problem)
        if not math.isinf(best):
            bound = lower_bound(problem)
            assert bound <= best + 1e-12 * abs(best) + 1e-15
            assert objective == "sum" or len(problem.costs) > 1 or bound == best, "one budget: the worst is exact"


def test_what_c_code_prints_does_not_reach_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    with highs.stdout_to_stderr():
        os.write(1, b"a remark of HiGHS\n")
    os.write(1, b"ours\n")
    captured = capfd.readouterr()
    assert captured.out == "ours\n"
    assert captured.err == "a remark of HiGHS\n"


def test_the_answer_is_at_least_as_good_as_what_was_known() -> None:
    draw = np.random.default_rng(2)
    problem = random_problem(draw, 8, 5, 2, room=1.0).merged().problem
    known = exact.least_sum(problem).selection
    assert problem.value(exact.least_sum(problem, known=known).selection) <= problem.value(known)
