"""Radii of known curves, and intervals that cover."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geoquant.basin import find_radius
from geoquant.errors import GeoquantError
from geoquant.evaluation import Mean, WeightedMean


def certain(curve):
    return lambda x: Mean(curve(x), 0.0, 100)


@settings(deadline=None)
@given(curvature=st.floats(1e-3, 1e7), tolerance=st.floats(1e-3, 1.0))
def test_a_parabola_ends_at_its_second_order_radius(curvature: float, tolerance: float) -> None:
    wanted = math.sqrt(2 * tolerance / curvature)
    found = find_radius(certain(lambda x: curvature * x * x / 2), tolerance, limit=1e3, relative=1e-3)
    if wanted >= 1e3:
        assert found.open
    elif wanted > 1e-3:
        assert found.value == pytest.approx(wanted, rel=1e-3)
        assert found.low <= wanted * 1.001
        assert found.high >= wanted * 0.999
    assert found.evaluations < 50


@pytest.mark.parametrize("edge", [0.03, 0.4, 1.0, 3.3])
def test_a_flat_box_ends_at_its_wall(edge: float) -> None:
    found = find_radius(certain(lambda x: 1000.0 * max(x - edge, 0.0)), 0.05, relative=0.01)
    assert found.value == pytest.approx(edge + 0.05 / 1000, rel=0.01)
    assert found.evaluations <= 20


def test_a_flat_floor_is_open_and_says_so() -> None:
    found = find_radius(certain(lambda x: 0.0), 0.05, limit=4.0)
    assert found.open
    assert (found.value, found.low, found.high) == (4.0, 4.0, 4.0)
    assert str(found).startswith("≥ 4")


def test_what_is_not_finite_lies_beyond_the_wall() -> None:
    found = find_radius(lambda x: Mean(math.nan if x > 0.7 else 0.0, 0.0, 4), 0.05, relative=0.01)
    assert found.value == pytest.approx(0.7, rel=0.01)


def test_a_loss_that_falls_first_is_inside() -> None:
    found = find_radius(certain(lambda x: (x - 1.0) ** 2 - 1.0), 0.05, relative=1e-3)
    assert found.value == pytest.approx(1 + math.sqrt(1.05), rel=1e-3)


def test_the_first_of_several_crossings_counts_where_it_is_seen() -> None:
    found = find_radius(certain(lambda x: 1.0 if 0.6 < x < 1.5 else 0.0), 0.05, relative=0.01)
    assert found.value == pytest.approx(0.6, rel=0.01)


def test_intervals_cover_the_radius_of_the_population() -> None:
    """Each sample has a curvature of its own, 1 on average: the mean crosses τ = ½ at 1 exactly."""
    covered, runs = 0, 200
    for seed in range(runs):
        own = torch.empty(80).exponential_(generator=torch.Generator().manual_seed(seed))

        def rise(x: float, own: torch.Tensor = own) -> Mean:
            mean = WeightedMean()
            mean.add(own * x * x / 2, torch.ones_like(own))
            return mean.result()

        found = find_radius(rise, 0.5, relative=0.02)
        assert found.low <= found.value <= found.high
        covered += found.low <= 1.0 <= found.high
    assert 0.90 * runs <= covered < runs  # 95 % up to the skew of exponentials, and not by being endless


def test_a_single_sample_has_no_spread_to_speak_of() -> None:
    found = find_radius(certain(lambda x: x * x / 2), 0.5, relative=1e-6)
    assert found.high - found.low < 1e-4


@pytest.mark.parametrize("wrong", [{"limit": 0.5}, {"relative": 0.0}, {"confidence": 1.0}, {"start": 0.0}])
def test_settings_that_make_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(GeoquantError, match="make no sense"):
        find_radius(certain(lambda x: x), 0.05, **wrong)
    with pytest.raises(GeoquantError, match="make no sense"):
        find_radius(certain(lambda x: x), math.nan)
