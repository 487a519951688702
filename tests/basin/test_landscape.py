"""The river toy: every number of the theory, exactly, and what breaks when an assumption does."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from geoquant.basin import Bowl, Codewords, Landscape, entry_bound, float_training, straight_through
from geoquant.basin.landscape import exact
from geoquant.errors import GeoquantError

TOY, GRID, START, RATE = Landscape(), Codewords(-0.2, 0.7), 0.3, 0.02


def test_nearest_rounding_climbs_the_wall_although_a_free_codeword_is_near() -> None:
    low, high = GRID.around(START)
    assert (low, high) == (Fraction(-1, 5), Fraction(1, 2))
    assert GRID.nearest(START) == high
    assert TOY.loss(0, high) == Fraction(1, 10)
    assert TOY.loss(0, low) == 0
    assert TOY.loss(0, START) == 0


def test_second_order_is_blind_inside_and_sees_outside() -> None:
    assert {TOY.second_order_damage(START, codeword) for codeword in GRID.around(START)} == {0}
    assert TOY.second_order_damage(0.5, -0.2) == Fraction(-7, 10)


def test_straight_through_enters_at_step_eight_exactly_and_stays() -> None:
    run = straight_through(TOY, GRID, START, rate=RATE, steps=300)
    assert run.entry(TOY) == 8
    assert run.stays(TOY)
    assert not any(TOY.inside(n) for n in run.deployed[:8])
    assert run.rounding_offset(8) == Fraction(34, 100)
    assert run.along[-1] == exact(RATE) * Fraction(1, 5) * 300  # the river is followed all the while


def test_the_bound_holds_on_the_toy_with_both_offsets() -> None:
    assert entry_bound(0.4, 1, 1, 0.35, RATE, START) == 57
    assert entry_bound(0.4, 1, 1, 0.34, RATE, START) == 45


def test_float_training_leaves_rounding_where_it_was() -> None:
    run = float_training(TOY, GRID, START, rate=RATE, steps=2000)
    assert run.entry(TOY) is None
    assert set(run.deployed) == {Fraction(1, 2)}
    assert run.latent[-1] == exact(START)


def test_without_a_codeword_inside_nothing_ever_enters_and_the_bound_does_not_apply() -> None:
    outside = Codewords(0.5, 1)
    run = straight_through(TOY, outside, START, rate=RATE, steps=600)
    assert run.entry(TOY) is None
    assert set(run.deployed) == {Fraction(1, 2), Fraction(-1, 2)}  # to and fro
    with pytest.raises(GeoquantError, match="does not exceed"):
        entry_bound(0.4, 1, 1, run.rounding_offset(), RATE, START)


@pytest.mark.parametrize("target", [0.1, 0.25, 0.7])
@pytest.mark.parametrize("rate", [0.01, 0.003])
def test_oscillation_share_of_the_upper_codeword(target: float, rate: float) -> None:
    run = straight_through(Bowl(target), Codewords(0, 1), 0.5, rate=rate, steps=2000)
    assert set(run.deployed) == {Fraction(0), Fraction(1)}
    assert run.share(1) == pytest.approx(target, abs=0.01)


def test_a_target_on_a_codeword_does_not_oscillate() -> None:
    assert straight_through(Bowl(1), Codewords(0, 1), 0.9, rate=0.01, steps=1000).share(1) == 1


@settings(deadline=None, max_examples=40)
@given(
    offset=st.integers(-20, 20),
    step=st.integers(1, 12),
    start=st.integers(-30, 30),
    rate=st.integers(5, 20),
)
def test_the_bound_is_never_exceeded(offset: int, step: int, start: int, rate: int) -> None:
    """Over random toys: whenever the conditions hold with ρ = half a step, entry comes within the bound."""
    grid, n, eta = Codewords(offset / 20, step / 20), start / 20, rate / 1000
    try:
        bound = entry_bound(0.4, 1, 1, step / 40, eta, abs(n))
    except GeoquantError:
        assume(False)
    assume(bound <= 1000)
    entry = straight_through(TOY, grid, n, rate=eta, steps=bound).entry(TOY)
    assert entry is not None


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((0.4, 1, 1, 0.4, 0.02, 0.3), "does not exceed"),
        ((0.4, 1, 1, 0.35, 0.1, 0.3), "outside"),
        ((0.4, 1, 1, 0.35, 0.0, 0.3), "outside"),
        ((0.4, 2, 1, 0.35, 0.02, 0.3), "exceeds the whole gradient"),
        ((0.4, 1, 1, float("nan"), 0.02, 0.3), "rho"),
        ((-0.4, 1, 1, 0.35, 0.02, 0.3), "r = "),
    ],
)
def test_broken_conditions_are_named(numbers: tuple[float, ...], words: str) -> None:
    with pytest.raises(GeoquantError, match=words):
        entry_bound(*numbers)


def test_a_grid_without_step_is_refused() -> None:
    with pytest.raises(GeoquantError, match="positive"):
        Codewords(0, 0)
