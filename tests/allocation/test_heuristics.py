"""Do the width-based strategies do what their source says, and are they exact where theory says so?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from geoquant.allocation import Cost, Problem, continuous_bits, solve
from geoquant.allocation.gradient import Relaxed, descend
from geoquant.allocation.ladder import fill_by_remainder, ladders, round_down
from geoquant.allocation.proportional import proportional_bits
from geoquant.errors import PlanError

WIDTHS = np.arange(2, 9)


def modelled(kappa: list[float], sizes: list[int], average: float, base: float = 2.0) -> Problem:
    """Damages kappa * base**-b over 2 to 8 bits, a budget in bits."""
    sizes = np.array(sizes)
    damage = np.array(kappa)[:, None] * base ** -WIDTHS.astype(float)
    return Problem(
        damage,
        (Cost("bits", sizes[:, None] * WIDTHS, int(sizes.sum() * average)),),
        weights=sizes,
        widths=WIDTHS,
    )


# --- greedy ---------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 100_000), st.integers(1, 8), st.integers(2, 6))
def test_greedy_is_exact_for_equal_sizes_and_convex_damage(seed: int, sites: int, choices: int) -> None:
    draw = np.random.default_rng(seed)
    savings = np.sort(draw.exponential(1.0, (sites, choices - 1)))[:, ::-1]  # ever less saved per bit: convex
    damage = np.cumsum(np.hstack([draw.uniform(9, 20, (sites, 1)), -savings]), axis=1)
    limit = int(draw.integers(sites, sites * choices + 1))
    problem = Problem(damage, (Cost("bits", np.tile(np.arange(1, choices + 1), (sites, 1)), limit),))
    assert solve(problem, "greedy").objective == pytest.approx(solve(problem).objective, rel=1e-12)


def test_greedy_is_not_exact_for_unequal_sizes() -> None:
    """Negative twin: the better ratio takes the room, and the large layer no longer fits."""
    problem = Problem([[3.0, 0.0], [10.0, 0.0]], (Cost("bits", [[0, 1], [0, 4]], 4),))
    greedy, exact = solve(problem, "greedy"), solve(problem)
    assert (greedy.objective, exact.objective) == (10.0, 3.0)
    assert exact.gap == 0.0
    assert greedy.lower_bound <= 3.0


def test_greedy_is_not_exact_for_damage_that_is_not_convex() -> None:
    """Negative twin: equal sizes, but one step alone saves nothing and three together much."""
    bits = Cost("bits", [[0, 1, 2, 3]] * 2, 3)
    problem = Problem([[9.0, 9.0, 9.0, 0.0], [4.0, 0.0, 0.0, 0.0]], (bits,))
    assert solve(problem, "greedy").objective > solve(problem).objective


def test_greedy_steps_the_worst_site_under_the_worst_objective() -> None:
    problem = Problem([[5.0, 4.0], [3.0, 0.0]], (Cost("bits", [[0, 1], [0, 1]], 1),))
    assert solve(problem, "greedy").selection.tolist() == [0, 1]
    assert solve(replace(problem, objective="worst"), "greedy").selection.tolist() == [1, 0]


# --- proportional ----------------------------------------------------------------------------------------------


def test_proportional_follows_the_logarithm_of_the_curvature() -> None:
    """Curvatures 2**2, 2**4, 2**6 at 4 bits on average: 2, 4 and 6 bits, wherever they are read."""
    problem = modelled([4.0, 16.0, 64.0], [10, 10, 10], 4.0)
    assert problem.width_table[0, solve(problem, "proportional").selection].tolist() == [2, 4, 6]


def test_proportional_clips_rounds_down_and_fills_by_largest_remainder() -> None:
    """Shares 1 : 3 : 20 of 16 bits. The last is clipped to 8, the others share 8 as 2 and 6."""
    problem = modelled([2.0, 8.0, 2.0**20], [1, 1, 1], 16 / 3)
    bits = proportional_bits(problem, ladders(problem, np.zeros(3, int)))
    assert bits == pytest.approx([2.0, 6.0, 8.0], abs=1e-6)
    steps = ladders(problem, np.zeros(3, int))
    rungs = round_down(problem, steps, np.array([2.6, 4.7, 7.0]))
    assert steps.widths[np.arange(3), rungs].tolist() == [2, 4, 7]
    filled = fill_by_remainder(problem, steps, rungs, np.array([2.6, 4.7, 7.0]))
    assert steps.widths[np.arange(3), filled].tolist() == [3, 5, 8]


def test_proportional_depends_on_the_unit_and_the_optimum_does_not() -> None:
    """Why the strategy is a baseline: the same evidence in another unit gives another plan."""
    problem = modelled([4.0, 16.0, 64.0], [10, 10, 10], 4.0)
    other = replace(problem, damage=1000 * problem.damage)
    assert solve(problem, "proportional").selection.tolist() != solve(other, "proportional").selection.tolist()
    assert solve(problem).selection.tolist() == solve(other).selection.tolist()


def test_curvatures_below_one_share_alike() -> None:
    problem = modelled([0.5, 0.1], [10, 10], 4.0)
    solution = solve(problem, "proportional")
    assert problem.width_table[0, solution.selection].tolist() == [4, 4]
    assert "2 of 2 sites" in solution.notes[0]


# --- gradient -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_gradient_descent_reaches_the_relaxed_optimum(seed: int) -> None:
    """Against scipy's SLSQP on the same convex problem, boxes and all."""
    draw = np.random.default_rng(seed)
    n = 8
    relaxed = Relaxed(
        draw.uniform(-3, 6, n), draw.uniform(0.7, 2.5, n), np.full(n, 2.0), np.full(n, 8.0), draw.uniform(1, 9, n), 60.0
    )
    answer = optimize.minimize(
        relaxed.value,
        np.full(n, 2.5),
        jac=lambda b: -np.log(2) * relaxed.slope * np.exp2(relaxed.log_kappa - relaxed.slope * b),
        bounds=[(2, 8)] * n,
        constraints={"type": "ineq", "fun": lambda b: relaxed.room - relaxed.price @ (b - 2)},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    bits = descend(relaxed)
    assert relaxed.price @ (bits - 2) <= relaxed.room * (1 + 1e-12)
    assert relaxed.value(bits) == pytest.approx(answer.fun, rel=1e-6)


def test_gradient_descent_agrees_with_the_closed_form_over_many_decades() -> None:
    c, n = 10.0 ** np.array([-9, -4, 0, 3, 6]), np.array([1.0, 30.0, 5.0, 200.0, 7.0])
    closed = continuous_bits(c, n, 40.0)
    free = Relaxed(np.log2(c), np.full(5, 2.0), np.zeros(5), np.full(5, 80.0), n, 40.0 * n.sum())
    assert descend(free) == pytest.approx(closed, abs=1e-4)


@given(st.integers(0, 100_000))
def test_projection_is_the_nearest_feasible_point(seed: int) -> None:
    """Variational inequality: from the projection, every feasible point lies away from the target."""
    draw = np.random.default_rng(seed)
    n = 5
    box = Relaxed(np.zeros(n), np.ones(n), np.zeros(n), draw.uniform(0.1, 4, n), draw.uniform(0, 3, n), 3.0)
    target, metric = draw.normal(1, 3, n), 10 ** draw.uniform(-3, 3, n)
    nearest = box.project(target, metric)
    assert box.price @ nearest <= box.room + 1e-9
    for _ in range(20):
        other = box.upper * draw.random(n)
        other *= min(1.0, box.room / max(box.price @ other, 1e-12))
        assert (metric * (target - nearest)) @ (other - nearest) <= 1e-7 * metric.max()


def test_gradient_recovers_the_best_whole_bits_of_its_own_model() -> None:
    problem = modelled([4.0, 64.0, 1024.0], [10, 10, 10], 5.0)
    assert solve(problem, "gradient").objective == pytest.approx(solve(problem).objective)


# --- uniform ------------------------------------------------------------------------------------------------


def test_uniform_takes_the_widest_that_fits_and_respects_fixed_sites() -> None:
    problem = modelled([1.0, 1.0, 1.0], [10, 10, 10], 5.5)
    assert solve(problem, "uniform").selection.tolist() == [3, 3, 3]  # 5 bits
    assert solve(problem.fix(0, 6), "uniform").selection.tolist() == [6, 2, 2]  # 8 bits there leave 4 for the others
    assert solve(problem.restrict(menu={4, 8}), "uniform").selection.tolist() == [2, 2, 2]


def test_uniform_takes_the_better_of_two_grids_of_one_width() -> None:
    """Claims compare with the best uniform grid."""
    problem = Problem([[3.0, 2.0, 1.0]] * 2, (Cost("bits", [[2, 3, 3]] * 2, 6),), widths=[2, 3, 3])
    assert solve(problem, "uniform").selection.tolist() == [2, 2]


def test_uniform_falls_back_to_the_smallest_plan_and_says_so() -> None:
    problem = Problem([[1.0, 2.0], [1.0, 2.0]], (Cost("bits", [[9, 1], [1, 9]], 2),))
    solution = solve(problem, "uniform")
    assert solution.selection.tolist() == [1, 0]
    assert "no single choice fits" in solution.notes[0]


# --- ladders ------------------------------------------------------------------------------------------------


def test_a_ladder_keeps_one_cheap_rung_per_width() -> None:
    """Columns: int2, int2 with zero points, int3, an int4 that is cheaper than int3, a forbidden int8."""
    bits = Cost("bits", [[2, 3, 9, 8, 16]], 99)
    problem = Problem([[5.0, 4.0, 3.0, 2.0, np.inf]], (bits,), widths=[2, 2, 3, 4, 8])
    assert ladders(problem, np.array([0])).choices.tolist() == [[0, 3]]


def test_costs_between_rungs_are_linear() -> None:
    problem = Problem([[5.0, 4.0]] * 2, (Cost("bits", [[2, 10], [1, 5]], 99),), widths=[2, 4]).fix(1, 0)
    steps = ladders(problem, np.array([0, 0]))
    assert steps.cost_at(np.array([2.5, 9.0])).tolist() == [[4.0, 1.0]]
    assert steps.cost_at(np.array([0.0, 1.0])).tolist() == [[2.0, 1.0]]


# --- continuous bits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [2.0, 4.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_closed_form_is_the_minimum(seed: int, base: float) -> None:
    """Against scipy on the same problem, and as a stationary point."""
    draw = np.random.default_rng(seed)
    c, n = 10 ** draw.uniform(-2, 2, 6), draw.uniform(1, 50, 6)
    bits = continuous_bits(c, n, 4.0, base)
    assert np.average(bits, weights=n) == pytest.approx(4.0)
    marginal = c * base**-bits / n
    assert marginal == pytest.approx(np.full(6, marginal[0])), "the last bit per weight must save the same everywhere"
    answer = optimize.minimize(
        lambda b: float(np.log((c * base**-b).sum())),
        np.full(6, 4.0),
        constraints={"type": "eq", "fun": lambda b: n @ (b - 4.0) / n.sum()},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert bits == pytest.approx(answer.x, abs=1e-3)


def test_the_closed_form_does_not_depend_on_the_unit_of_damage() -> None:
    c, n = np.array([3.0, 0.1, 20.0]), np.array([5, 100, 7])
    assert continuous_bits(c, n, 3.0) == pytest.approx(continuous_bits(1e6 * c, n, 3.0))


def test_whole_bits_are_never_better_than_the_closed_form() -> None:
    """The relaxation bounds the integer optimum from below, at the same number of bits."""
    sizes = [10, 200, 30]
    problem = modelled([4.0, 64.0, 9.0], sizes, 5.0, base=4.0)
    bits = continuous_bits([4.0, 64.0, 9.0], sizes, 5.0)
    assert (np.array([4.0, 64.0, 9.0]) * 4.0**-bits).sum() <= solve(problem).objective


@pytest.mark.parametrize(
    ("c", "n", "base"), [([0.0], [1], 4.0), ([1.0, 2.0], [1], 4.0), ([1.0], [0], 4.0), ([1.0], [1], 1.0)]
)
def test_the_closed_form_refuses_what_has_no_logarithm(c: list, n: list, base: float) -> None:
    with pytest.raises(PlanError, match="positive c and n"):
        continuous_bits(c, n, 3.0, base)
