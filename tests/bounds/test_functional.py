"""Composition of error functionals: attained on aligned chains, strict on misaligned ones, never violated."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoquant.bounds.functional import ErrorFunctional, compose, compose_counting_twice
from geoquant.errors import GeoquantError

finite = st.floats(min_value=0.0, max_value=1e3)
functionals = st.builds(ErrorFunctional, finite, finite)


def norm(matrix: np.ndarray) -> float:
    return float(np.linalg.norm(matrix, 2))


def affine_chain_functional(exact: list[np.ndarray], stored: list[np.ndarray], x: np.ndarray) -> ErrorFunctional:
    """Lipschitz constants of the stored maps, local errors at the exact inputs."""
    parts = []
    for weight, rounded in zip(exact, stored, strict=True):
        parts.append(ErrorFunctional(norm(rounded), float(np.linalg.norm((rounded - weight) @ x))))
        x = weight @ x
    return compose(parts)


def apply(weights: list[np.ndarray], x: np.ndarray) -> np.ndarray:
    for weight in weights:
        x = weight @ x
    return x


@settings(deadline=None)
@given(functionals, functionals, functionals, finite)
def test_composition_is_application(a: ErrorFunctional, b: ErrorFunctional, c: ErrorFunctional, e: float):
    assert (a @ b)(e) == pytest.approx(a(b(e)))
    left, right = (a @ b) @ c, a @ (b @ c)
    assert (left.lipschitz, left.local) == pytest.approx((right.lipschitz, right.local))
    assert (a + b)(e) == pytest.approx(a(e) + b(e))


def test_same_sign_scalar_chain_attains_the_bound():
    exact = [np.array([[w]]) for w in (2.0, 3.0, 0.5)]
    stored = [w + d for w, d in zip(exact, (0.1, 0.2, 0.05), strict=True)]
    x = np.array([1.7])
    clean = abs(apply(stored, x) - apply(exact, x))[0]
    assert affine_chain_functional(exact, stored, x)(0.0) == pytest.approx(clean, rel=1e-13)
    shifted = abs(apply(stored, x + 0.3) - apply(exact, x))[0]
    assert affine_chain_functional(exact, stored, x)(0.3) == pytest.approx(shifted, rel=1e-13)


def test_opposite_signs_make_the_bound_strict():
    exact = [np.array([[2.0]]), np.array([[3.0]])]
    stored = [np.array([[2.1]]), np.array([[2.9]])]
    x = np.array([1.0])
    observed = abs(apply(stored, x) - apply(exact, x))[0]
    assert observed < 0.2 * affine_chain_functional(exact, stored, x)(0.0)


def test_misaligned_matrices_make_the_bound_strict():
    # The first layer errs along e1 only; the second amplifies e2 only.
    exact = [np.diag([1.0, 1.0]), np.diag([0.1, 10.0])]
    stored = [np.diag([1.5, 1.0]), np.diag([0.1, 10.0])]
    x = np.array([1.0, 1.0])
    observed = float(np.linalg.norm(apply(stored, x) - apply(exact, x)))
    assert observed == pytest.approx(0.05)
    assert affine_chain_functional(exact, stored, x)(0.0) == pytest.approx(5.0)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_random_chains_never_exceed_the_bound(seed: int, depth: int):
    rng = np.random.default_rng(seed)
    exact = [rng.normal(size=(3, 3)) for _ in range(depth)]
    stored = [w + 0.3 * rng.normal(size=(3, 3)) for w in exact]
    x, shift = rng.normal(size=3), 0.2 * rng.normal(size=3)
    observed = np.linalg.norm(apply(stored, x + shift) - apply(exact, x))
    assert observed <= affine_chain_functional(exact, stored, x)(float(np.linalg.norm(shift))) * (1 + 1e-12)


def test_mixing_exact_constants_with_clean_errors_is_unsound():
    # The negative twin of the rule in the module docstring: L of the exact maps with Δ at the exact inputs.
    exact, stored, x = [np.array([[1.0]])] * 2, [np.array([[2.0]])] * 2, np.array([1.0])
    mixed = compose(ErrorFunctional(norm(w), norm(s - w) * 1.0) for w, s in zip(exact, stored, strict=True))
    observed = abs(apply(stored, x) - apply(exact, x))[0]
    assert mixed(0.0) == 2.0 < observed == 3.0
    assert affine_chain_functional(exact, stored, x)(0.0) == 3.0


@settings(deadline=None)
@given(functionals, functionals, finite)
def test_counting_twice_is_never_below_the_sound_law(outer: ErrorFunctional, inner: ErrorFunctional, e: float):
    excess = compose_counting_twice(outer, inner)(e) - (outer @ inner)(e)
    assert excess == pytest.approx(outer.lipschitz * inner(e), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("values", [(-1.0, 0.0), (1.0, -1e-9), (float("nan"), 0.0), (1.0, float("inf"))])
def test_impossible_functionals_are_refused(values: tuple[float, float]):
    with pytest.raises(GeoquantError, match="finite"):
        ErrorFunctional(*values)


def test_a_negative_input_error_is_refused():
    with pytest.raises(GeoquantError, match="at least 0"):
        ErrorFunctional(1.0, 0.0)(-0.1)
