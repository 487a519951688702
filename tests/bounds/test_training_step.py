"""Training steps in low precision: functionals against real optimizers, descent against real steps, twins that fail."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geoquant.bounds.descent_condition import (
    coupled_rule,
    dead_zone,
    descent,
    own_layer_rule,
    stochastic_rounding_variance,
    sufficient_forward_bits,
    sufficient_layer_bits,
)
from geoquant.bounds.training_step import adam, backward, forward, momentum, nonexpansive_sgd, sgd
from geoquant.errors import GeoquantError


def quadratic(seed: int, size: int = 5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(size, size)))[0]
    return basis @ np.diag(rng.uniform(0.1, 3.0, size)) @ basis.T


def rounded(x: np.ndarray, step: float) -> np.ndarray:
    return step * np.round(x / step)


def test_sgd_attains_its_functional_in_one_dimension():
    smoothness, rate, delta, noise = -3.0, 0.1, 0.2, 0.05  # a concave direction: errors grow, signs align
    theta, wrong = 1.0, 1.5
    exact = theta - rate * smoothness * theta
    computed = wrong - rate * (smoothness * (wrong + delta) - noise)
    bound = (sgd(rate) @ backward(3.0, noise) @ forward(delta)).step()((wrong - theta,))
    assert bound[0] == pytest.approx(abs(computed - exact))


@settings(deadline=None)
@given(st.integers(0, 1000))
def test_momentum_never_exceeds_its_functional(seed: int):
    rng, hessian = np.random.default_rng(seed), quadratic(seed)
    smoothness, rate, decay, grid = float(np.linalg.norm(hessian, 2)), 0.2, 0.9, 0.05
    theta, velocity = rng.normal(size=5), rng.normal(size=5)
    low_theta, low_velocity = theta + 0.01 * rng.normal(size=5), velocity + 0.01 * rng.normal(size=5)
    errors = (float(np.linalg.norm(low_theta - theta)), float(np.linalg.norm(low_velocity - velocity)))
    worst = np.sqrt(5) * grid / 2
    functional = (momentum(rate, decay, 0.0, worst) @ backward(smoothness) @ forward(worst)).step()
    for _ in range(6):
        velocity = decay * velocity + hessian @ theta
        theta = theta - rate * velocity
        low_velocity = rounded(decay * low_velocity + hessian @ rounded(low_theta, grid), grid)
        low_theta = low_theta - rate * low_velocity
        errors = functional(errors)
        assert np.linalg.norm(low_theta - theta) <= errors[0] * (1 + 1e-12)
        assert np.linalg.norm(low_velocity - velocity) <= errors[1] * (1 + 1e-12)


@settings(deadline=None)
@given(st.integers(0, 1000), st.sampled_from([1, 3, 50]))
def test_adam_never_exceeds_its_functional_and_matches_torch(seed: int, time: int):
    rng = np.random.default_rng(seed)
    decays, rate, epsilon = (0.9, 0.99), 0.01, 1e-8

    def draw(scale: float) -> tuple[np.ndarray, ...]:
        return tuple(scale * rng.normal(size=4) for _ in range(4))

    theta, first, gradient, raw = draw(1.0)
    second = 0.2 + raw**2
    shifts = draw(1e-3)

    def step(t: np.ndarray, m: np.ndarray, v: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, ...]:
        weight = torch.nn.Parameter(torch.tensor(t))
        optimizer = torch.optim.Adam([weight], rate, decays, epsilon)
        optimizer.state[weight] = {
            "step": torch.tensor(float(time - 1)),
            "exp_avg": torch.tensor(m.copy()),
            "exp_avg_sq": torch.tensor(v.copy()),
        }
        weight.grad = torch.tensor(g)
        optimizer.step()
        state = optimizer.state[weight]
        return weight.detach().numpy(), state["exp_avg"].numpy(), state["exp_avg_sq"].numpy()

    start = (theta, first, second, gradient)
    exact = step(*start)
    low = step(*(one + shift for one, shift in zip(start, shifts, strict=True)))
    corrected = [[after[1] / (1 - decays[0] ** time), after[2] / (1 - decays[1] ** time)] for after in (exact, low)]
    gradient_bound = max(
        np.abs(gradient).max(), np.abs(gradient + shifts[3]).max(), *(np.abs(m).max() for m, _ in corrected)
    )
    functional = adam(
        rate,
        gradient_bound=float(gradient_bound),
        second_moment_floor=float(min(v.min() for _, v in corrected)),
        decays=decays,
        epsilon=epsilon,
        time=time,
    )
    fixed = functional @ backward(0.0, float(np.linalg.norm(shifts[3])))  # the gradient's error is given, not read off
    bound = fixed.step()(tuple(float(np.linalg.norm(shift)) for shift in shifts[:3]))
    for one, other, most in zip(exact, low, bound, strict=True):
        assert np.linalg.norm(one - other) <= most * (1 + 1e-9)


def test_adam_has_no_constant_at_a_vanishing_second_moment():
    gains = [adam(1e-3, gradient_bound=1.0, second_moment_floor=v).state[0][2] for v in (1e-2, 1e-4, 1e-6)]
    assert gains[0] < 1e-2 * gains[1] < 1e-4 * gains[2]


def test_convex_steps_do_not_expand_and_concave_ones_do():
    hessian, rng = quadratic(0), np.random.default_rng(0)
    smoothness = float(np.linalg.norm(hessian, 2))
    rate = 1.9 / smoothness
    for _ in range(50):
        one, other = rng.normal(size=5), rng.normal(size=5)
        moved = np.linalg.norm((one - rate * hessian @ one) - (other - rate * hessian @ other))
        assert moved <= nonexpansive_sgd(rate, smoothness, 0.0)((float(np.linalg.norm(one - other)),))[0]
    # The negative twin: on −½x² the same step expands, and only the general functional covers it.
    assert abs(1 - rate * -smoothness) > 1
    assert (sgd(rate) @ backward(smoothness) @ forward(0.0)).step()((1.0,))[0] >= abs(1 + rate * smoothness) - 1e-12
    with pytest.raises(GeoquantError, match="non-expansive"):
        nonexpansive_sgd(2.1 / smoothness, smoothness, 0.0)


@settings(deadline=None)
@given(st.integers(0, 2000), st.floats(0.0, 2.0))
def test_descent_is_at_least_what_is_guaranteed(seed: int, size: float):
    hessian, rng = quadratic(seed), np.random.default_rng(seed)
    smoothness = float(np.linalg.norm(hessian, 2))
    rate = rng.uniform(0.1, 1.0) / smoothness
    theta, error = rng.normal(size=5), size * rng.normal(size=5)
    gradient = hessian @ theta
    after = theta - rate * (gradient + error)
    decrease = 0.5 * theta @ hessian @ theta - 0.5 * after @ hessian @ after
    promised = descent(float(np.linalg.norm(gradient)), float(np.linalg.norm(error)), rate, smoothness)
    assert decrease >= promised.decrease - 1e-12
    assert not promised.guaranteed or decrease > 0


def test_the_condition_is_tight_just_under_half_a_step():
    curvature, step = 5.0, 0.5
    for x, moves in ((0.2499, False), (0.2501, True)):
        point = float(rounded(np.array(x), step))
        gradient, error = curvature * abs(x), curvature * abs(point - x)
        assert descent(gradient, error, 1 / curvature, curvature).guaranteed is moves
        assert (curvature * point != 0.0) is moves


def test_beyond_one_over_l_there_is_no_guarantee():
    with pytest.raises(GeoquantError, match="1/L"):
        descent(1.0, 0.0, 0.3, 10.0)
    x = 1.0 - 0.3 * 10.0 * 1.0  # the negative twin: with an exact gradient the step still climbs
    assert abs(x) > 1.0


def test_sufficient_forward_bits_are_enough_on_a_quadratic():
    hessian, rng = quadratic(3), np.random.default_rng(3)
    smoothness, span = float(np.linalg.norm(hessian, 2)), 8.0
    for _ in range(20):
        theta = rng.uniform(-4, 4, 5)
        gradient = hessian @ theta
        bits = np.floor(sufficient_forward_bits(float(np.linalg.norm(gradient)), smoothness, 5, span)) + 1
        after = theta - hessian @ rounded(theta, span / 2**bits) / smoothness
        assert after @ hessian @ after < theta @ hessian @ theta
    assert sufficient_forward_bits(0.0, 1.0, 1, 1.0) == float("inf")


def test_dead_zone_is_where_nearest_rounding_leaves_weights_in_place():
    step, rate = 0.1, 0.01
    weights = step * torch.arange(-50, 50, dtype=torch.float64)
    gradient = torch.linspace(-20, 20, 100, dtype=torch.float64)
    stored = step * torch.round((weights - rate * gradient) / step)
    still = (stored - weights).abs() < 1e-9
    assert torch.equal(still, dead_zone(gradient, rate, step))
    assert 0 < int(still.sum()) < 100


def test_stochastic_rounding_is_unbiased_and_its_variance_is_attained_in_the_middle():
    generator = torch.Generator().manual_seed(0)
    step, shares = 0.5, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    up = torch.rand(200_000, 3, generator=generator) < shares
    moved = step * up.double()
    assert torch.allclose(moved.mean(0), step * shares, atol=5e-3)
    assert torch.all(moved.var(0) <= stochastic_rounding_variance(step) * 1.01)
    assert float(moved.var(0)[1]) == pytest.approx(stochastic_rounding_variance(step), rel=0.01)


def two_blocks(coupling: float) -> np.ndarray:
    return np.array([[1.0, coupling], [coupling, 1.0]])


def goes_down(hessian: np.ndarray, theta: np.ndarray, delta: np.ndarray) -> bool:
    after = theta - hessian @ (theta + delta) / np.linalg.norm(hessian, 2)
    return bool(after @ hessian @ after < theta @ hessian @ theta)


def test_the_layerwise_rule_holds_without_coupling_and_fails_with_it():
    theta, delta = np.array([1.0, -1.0]), np.array([0.09, 0.09])
    for coupling, safe in ((0.0, True), (0.9, False)):
        hessian = two_blocks(coupling)
        gradients = np.abs(hessian @ theta)
        # Its own terms alone look fine in both cases …
        assert own_layer_rule([1.0, 1.0], gradients, np.abs(delta)) == (True, True)
        # … but the step goes down only without coupling, as the coupled rule says.
        assert all(coupled_rule(np.abs(hessian), gradients, np.abs(delta))) is safe
        assert goes_down(hessian, theta, delta) is safe


@settings(deadline=None)
@given(st.integers(0, 3000))
def test_the_coupled_rule_guarantees_descent(seed: int):
    rng = np.random.default_rng(seed)
    hessian = two_blocks(float(rng.uniform(-0.99, 0.99)))
    theta, delta = rng.normal(size=2), 0.3 * rng.normal(size=2)
    if all(coupled_rule(np.abs(hessian), np.abs(hessian @ theta), np.abs(delta))):
        assert goes_down(hessian, theta, delta)


@settings(deadline=None)
@given(st.integers(0, 3000))
def test_sufficient_layer_bits_satisfy_the_coupled_rule(seed: int):
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 5))
    blocks = np.abs(rng.normal(size=(size, size))) * (rng.uniform(size=(size, size)) < 0.7)
    gradients, weights, spans = rng.uniform(0.1, 2, size), rng.integers(1, 100, size), rng.uniform(0.1, 3, size)
    bits = np.array(sufficient_layer_bits(blocks, gradients, weights, spans)) + 1e-6
    errors = np.sqrt(weights) * spans / 2 ** (bits + 1)
    assert all(coupled_rule(blocks, gradients, errors))


def test_misshapen_couplings_are_refused():
    with pytest.raises(GeoquantError, match="coupling"):
        coupled_rule([[1.0]], [1.0, 1.0], [0.0, 0.0])
    with pytest.raises(GeoquantError, match="at least 0"):
        coupled_rule([[-1.0]], [1.0], [0.0])
    with pytest.raises(GeoquantError, match="decay"):
        momentum(0.1, 1.0)
    with pytest.raises(GeoquantError, match="floor"):
        adam(0.1, gradient_bound=1.0, second_moment_floor=0.0)
    with pytest.raises(GeoquantError, match="errors of"):
        sgd(0.1).step()((0.0, 0.0))
