"""Does a problem say what it means, refuse nonsense, and survive merging and restricting?"""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from allocation.problems import enumerate_selections, random_problem
from geoquant.allocation import Cost, Problem, minimum_costs, solve
from geoquant.errors import BudgetError, PlanError

BITS = Cost("bits", [[2, 4], [3, 6]], 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"damage": [1.0, 2.0]}, "needs a .sites, choices. table"),
        ({"damage": np.zeros((0, 2))}, "at least one of each"),
        ({"damage": [[1.0, np.nan]]}, "NaN"),
        ({"damage": [[1.0, -np.inf]]}, "-inf"),
        ({"damage": [[1.0, 2.0], [np.inf, np.inf]], "names": ("conv1", "fc")}, "fc has no allowed choice"),
        ({"damage": [[1.0, 2.0]], "allowed": [[False, False]]}, "site 0 has no allowed choice"),
        ({"damage": [[1.0, 2.0]], "costs": (BITS,)}, "the costs in bits has shape"),
        ({"damage": [[1.0, 2.0]], "weights": [1, 2]}, "weights"),
        ({"damage": [[1.0, 2.0]], "widths": [1, 2, 3]}, "widths"),
        ({"damage": [[1.0, 2.0]], "names": ("a", "b")}, "2 names were given for 1 sites"),
        ({"damage": [[1.0, 2.0]], "objective": "max"}, "use 'sum', 'worst' or a function"),
        ({"damage": [[1.0], [2.0]], "groups": ((0, 2),)}, "must name sites 0 to 1"),
        ({"damage": [[1.0], [2.0]], "groups": ((0, 1), (1,))}, "each at most once"),
        ({"damage": [[1.0, np.inf], [np.inf, 2.0]], "groups": ((0, 1),)}, "no allowed choice in common"),
        ({"damage": [[1.0], [1.0]], "costs": (Cost("bits", [[2**52]] * 2, 1),)}, "use a larger unit"),
    ],
)
def test_nonsense_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Problem(**arguments)


@pytest.mark.parametrize(
    ("table", "message"),
    [([[1.5]], "whole numbers"), ([[-1]], "negative"), ([1, 2], "table of numbers"), ([[2**60]], "larger unit")],
)
def test_costs_are_whole_and_not_negative(table: list, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Cost("bits", table, 1)


def test_limits_are_integers() -> None:
    with pytest.raises(BudgetError, match=r"must be an integer, not 2.5; round it down"):
        Cost("bits", [[1]], 2.5)
    assert Cost("bits", [[1.0]], np.int64(3)).limit == 3


def test_nan_is_fine_where_the_choice_is_forbidden() -> None:
    problem = Problem([[1.0, np.nan]], allowed=[[True, False]])
    assert problem.damage.tolist() == [[1.0, np.inf]]


def test_values_are_frozen_and_do_not_share_memory() -> None:
    damage = np.ones((2, 2))
    problem = Problem(damage, (BITS,))
    damage[0, 0] = 9.0
    assert problem.damage[0, 0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        problem.damage[0, 0] = 2.0
    with pytest.raises(FrozenInstanceError):
        problem.groups = ()


def test_equality_is_by_content() -> None:
    assert Problem(np.ones((2, 2)), (BITS,)) == Problem(np.ones((2, 2)), (Cost("bits", [[2, 4], [3, 6]], 8),))
    assert Problem(np.ones((2, 2)), (BITS,)) != Problem(np.ones((2, 2)), (replace(BITS, limit=9),))
    first, second = solve(Problem(np.ones((2, 2)), (BITS,))), solve(Problem(np.ones((2, 2)), (BITS,)))
    assert first == replace(second, seconds=second.seconds + 1)
    assert first != replace(second, solver="other")


def test_sums_do_not_depend_on_the_order_of_sites() -> None:
    damage = np.array([1e16, 1.0, -1e16, 1.0])[:, None]
    assert Problem(damage).value(np.zeros(4, int)) == 2.0
    assert Problem(damage[::-1]).value(np.zeros(4, int)) == 2.0


def test_restrict_by_menu_limits_and_per_site() -> None:
    problem = Problem(np.zeros((2, 5)), widths=[2, 3, 4, 8, 16], names=("conv1", "fc"))
    assert problem.restrict(menu={4, 8, 16}).mask[0].tolist() == [False, False, True, True, True]
    assert problem.restrict(upper=[3, 8]).mask.sum(axis=1).tolist() == [2, 4]
    assert problem.restrict(3, 8).restrict(menu={3, 16}).mask[1].tolist() == [False, True, False, False, False]
    with pytest.raises(PlanError, match="fc has no allowed choice"):
        problem.restrict(lower=[2, 17])


def test_fixing_a_forbidden_choice_is_refused() -> None:
    with pytest.raises(PlanError, match="no allowed choice"):
        Problem([[1.0, np.inf]]).fix(0, 1)


@given(st.integers(0, 10_000), st.sampled_from(["sum", "worst"]))
def test_merging_keeps_values_costs_and_feasibility(seed: int, objective: str) -> None:
    """Every selection of the merged problem is worth, and costs, what its expansion does; none is lost."""
    draw = np.random.default_rng(seed)
    problem = random_problem(draw, 4, 3, 2, objective, room=2.0)
    assume(problem.mask[[0, 2]].all(axis=0).any())
    problem = replace(problem, groups=((2, 0),))
    merged = problem.merged()
    seen = set()
    for selection in enumerate_selections(merged.problem):
        expanded = merged.expand(selection)
        seen.add(tuple(expanded.tolist()))
        assert problem.fits(expanded)
        assert problem.value(expanded) == pytest.approx(merged.problem.value(selection), rel=1e-12, abs=1e-15)
        assert problem.totals(expanded) == merged.problem.totals(selection)
    assert seen == {tuple(selection.tolist()) for selection in enumerate_selections(problem)}


def test_members_are_the_way_back() -> None:
    merged = Problem(np.zeros((5, 1)), groups=((4, 1), (2, 3))).merged()
    assert [members.tolist() for members in merged.members] == [[0], [1, 4], [2, 3]]


def test_a_function_has_no_merged_form_of_its_own() -> None:
    problem = Problem([[1.0], [2.0]], groups=((0, 1),), objective=lambda d: float(d.sum()))
    with pytest.raises(PlanError, match="ask for the 'sum' or the 'worst'"):
        problem.merged()
    assert problem.merged("worst").problem.damage.tolist() == [[2.0]]


def test_minimum_costs_respect_groups() -> None:
    """Apart each site takes its own cheapest; together they must agree."""
    cost = Cost("bits", [[1, 5], [9, 2]], 100)
    assert minimum_costs(Problem(np.zeros((2, 2)), (cost,))) == (3,)
    assert minimum_costs(Problem(np.zeros((2, 2)), (cost,), groups=((0, 1),))) == (7,)
