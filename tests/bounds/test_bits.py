"""Necessary and sufficient bits against brute force: what is claimed impossible fails, what suffices works."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoquant.bounds.bits import (
    CRITICAL_POINT,
    INPUT_ROUNDING,
    OUTPUT_CODING,
    necessary_bits,
    necessary_outputs,
    seed11_curvature_bits,
    sufficient_bits,
)
from geoquant.errors import GeoquantError

positive = st.floats(min_value=1e-3, max_value=1e3)


def best_error_with_outputs(values: np.ndarray, count: int) -> float:
    """Least possible largest error when every value must be answered by one of `count` outputs.

    Values that fill an interval are best covered by equal pieces: half the range over the count.
    """
    return (values.max() - values.min()) / (2 * count)


def test_the_parabola_needs_2000_outputs_and_1999_cannot_do():
    values = 0.5 * 8 * np.linspace(-1, 1, 4001) ** 2
    needed = necessary_outputs(4.0, 2.0, 1e-3)
    assert needed == 2000
    assert best_error_with_outputs(values, 2000) == pytest.approx(1e-3)
    assert best_error_with_outputs(values, 1999) > 1e-3
    # 2000 explicit outputs, the centers of equal intervals, do serve every point.
    outputs = (np.arange(2000) + 0.5) * (4 / 2000)
    nearest = np.abs(values[:, None] - outputs[None, np.newaxis, :]).min(-1)
    assert nearest.max() <= 1e-3 + 1e-12
    assert necessary_bits(1e-3, 2.0, model=OUTPUT_CODING, curvature=4.0).bits == pytest.approx(math.log2(2000))


def test_affine_maps_attain_the_first_order_bound():
    slope, span, tolerance = 3.0, 2.0, 0.01
    need = necessary_bits(tolerance, span, model=INPUT_ROUNDING, spectral_norm=slope).bits
    for bits in (need - 0.1, need, need + 0.1):
        step = span / 2**bits
        best = slope * step / 2  # half the image of one cell, reached by answering its middle
        assert (best <= tolerance * (1 + 1e-9)) == (bits >= need)


@settings(deadline=None)
@given(positive, st.floats(min_value=0.5, max_value=20))
def test_at_a_critical_point_the_middle_of_the_image_is_best(second_derivative: float, bits: float):
    step = 1.0 / 2**bits
    cell = np.linspace(-step / 2, step / 2, 1001)
    image = 0.5 * second_derivative * cell**2
    best = (image.max() - image.min()) / 2
    plain = np.abs(image - 0.0).max()  # f(Q(x)) = f(0)
    assert best == pytest.approx(second_derivative * step**2 / 16)
    assert plain == pytest.approx(2 * best)
    need = necessary_bits(best, 1.0, model=CRITICAL_POINT, curvature=second_derivative / 2).bits
    assert need == pytest.approx(bits, abs=1e-9)


def test_a_cell_edge_at_the_critical_point_escapes_the_critical_point_bound():
    # The negative twin: with the point on an edge a cell [0, Δ] has an image four times as large, so the stated
    # placement matters, and a map with slope needs the first-order bound instead.
    step = 0.25
    centered = 0.5 * 8 * (step / 2) ** 2 / 2
    edge = 0.5 * 8 * step**2 / 2
    assert edge == 4 * centered


def test_another_information_model_escapes_the_bound():
    # Input rounding says that 1 bit cannot reach ε; a scheme that may name outputs freely does with the same bit.
    tolerance = 0.5
    need = necessary_bits(tolerance, 8.0, model=INPUT_ROUNDING, spectral_norm=1.0)
    assert need.word_length == 3
    two_valued = np.array([0.0, 8.0])  # inputs that occur
    assert best_error_with_outputs(np.array([0.0]), 1) == 0.0
    assert len(two_valued) <= 2**1
    assert "this grid and information model" in need.claim
    assert "algorithm" not in need.claim


@settings(deadline=None)
@given(positive, positive, positive, st.floats(min_value=0, max_value=100), st.floats(min_value=0, max_value=100))
def test_sufficient_bits_meet_the_tolerance_exactly(
    tolerance: float, size: float, lipschitz: float, curvature: float, output: float
):
    bits = sufficient_bits(tolerance, size, lipschitz, curvature, output).bits
    unit = 2.0**-bits
    error = lipschitz * size * unit + curvature * size**2 * unit**2 + output * unit
    if bits > 0:
        assert error == pytest.approx(tolerance, rel=1e-9)
    else:
        assert error <= tolerance * (1 + 1e-9)


def test_sufficient_bits_suffice_for_a_real_map():
    rng = np.random.default_rng(0)
    x = rng.uniform(0.5, 2.0, 10_000)
    bits = sufficient_bits(
        1e-3, 2.0, lipschitz=math.cosh(2.05), curvature=math.sinh(2.05) / 2, output_size=math.sinh(2.05)
    )
    unit = 2.0**-bits.bits
    rounded = x * (1 + unit * rng.uniform(-1, 1, x.shape))
    answer = np.sinh(rounded) * (1 + unit * rng.uniform(-1, 1, x.shape))
    assert np.abs(answer - np.sinh(x)).max() <= 1e-3


def test_sufficient_exceeds_necessary_for_the_same_map():
    need = necessary_bits(1e-3, 2.0, model=INPUT_ROUNDING, spectral_norm=3.0).bits
    assert sufficient_bits(1e-3, 1.0, 3.0).bits >= need


def test_the_seeds_form_asks_for_more_than_is_necessary():
    # At its bit count minus one the plain scheme f(Q(x)) still meets ε: so its bits are not necessary.
    curvature, span, tolerance = 4.0, 2.0, 1e-3
    step = span / 2 ** (seed11_curvature_bits(curvature, span, tolerance) - 1)
    assert 2 * curvature * step**2 / 8 <= tolerance


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "telepathy", "curvature": 1.0}, "information model"),
        ({"model": OUTPUT_CODING}, "curvature"),
        ({"model": INPUT_ROUNDING, "curvature": 1.0}, "spectral_norm"),
        ({"model": INPUT_ROUNDING, "spectral_norm": -1.0}, "spectral_norm"),
        ({"model": CRITICAL_POINT, "curvature": math.nan}, "curvature"),
    ],
)
def test_missing_or_impossible_numbers_are_refused(arguments: dict, message: str):
    with pytest.raises(GeoquantError, match=message):
        necessary_bits(1e-3, 1.0, **arguments)
    with pytest.raises(GeoquantError, match="above 0"):
        necessary_outputs(1.0, 1.0, 0.0)


def test_affine_maps_need_nothing_for_their_curvature():
    assert necessary_bits(1e-3, 1.0, model=OUTPUT_CODING, curvature=0.0).bits == 0.0
