"""The regression against a dense Gaussian that is conditioned in the textbook way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from geoquant.sensitivity.beliefs import ALONE, COMMON, OWN, SITE, Beliefs, paired


def evaluated(draw: np.random.Generator) -> Beliefs:
    predicted = draw.uniform(0.1, 3, (4, 3))
    predicted[1, 2] = np.inf
    beliefs = Beliefs.of(predicted, (0, 1, 2, 0), damage=2.0)
    for columns in ((1, 1, 2, 0), (0, 0, 0, 2), (2, 1, 1, 1)):
        beliefs = beliefs.after(columns, float(draw.normal()), 0.05)
    return beliefs


def dense(beliefs: Beliefs) -> tuple[np.ndarray, np.ndarray]:
    """Posterior mean (n,) and covariance (n, n), by the formula."""
    prior = beliefs.prior.ravel()
    same_site = np.kron(np.eye(len(beliefs.prior)), np.ones((beliefs.prior.shape[1],) * 2))
    own = (OWN * prior) ** 2 + (ALONE * prior.mean()) ** 2
    covariance = (COMMON**2 + SITE**2 * same_site) * np.outer(prior, prior) + np.diag(own)
    rows = []
    for columns in beliefs.plans:
        row = np.zeros(beliefs.prior.shape)
        for site, (column, old) in enumerate(zip(columns, beliefs.start, strict=True)):
            row[site, column] += 1
            row[site, old] -= 1
        rows.append(row.ravel())
    x = np.array(rows)
    gain = covariance @ x.T @ np.linalg.inv(x @ covariance @ x.T + np.diag(np.square(beliefs.noise)))
    return prior + gain @ (np.array(beliefs.differences) - x @ prior), covariance - gain @ x @ covariance


def test_the_mean_is_that_of_the_dense_gaussian() -> None:
    beliefs = evaluated(np.random.default_rng(0))
    assert beliefs.mean().ravel() == pytest.approx(dense(beliefs)[0], rel=1e-9)


def test_draws_have_the_mean_and_covariance_of_the_dense_gaussian() -> None:
    beliefs = evaluated(np.random.default_rng(1))
    generator = np.random.default_rng(2)
    draws = np.array([beliefs.draw(generator).ravel() for _ in range(6000)])
    mean, covariance = dense(beliefs)
    scale = np.sqrt(np.diag(covariance))
    assert np.abs((draws.mean(0) - mean) / scale).max() < 0.07
    assert np.abs((np.cov(draws.T) - covariance) / np.outer(scale, scale)).max() < 0.1


def test_a_score_without_unit_is_scaled_to_the_measured_damage() -> None:
    small, large = (Beliefs.of(factor * np.array([[2.0, 1.0]] * 3), (0, 0, 1), 10.0) for factor in (1e-6, 1e6))
    assert small.prior == pytest.approx(large.prior)
    assert small.prior[[0, 1, 2], [0, 0, 1]].sum() == pytest.approx(10.0)
    assert np.isfinite(Beliefs.of(np.zeros((2, 2)), (0, 0), 1.0).after((1, 0), 0.5, 0.1).mean()).all()


def test_pairing_takes_the_common_noise_away() -> None:
    draw = np.random.default_rng(3)
    before = draw.exponential(1.0, 400)
    weights = draw.integers(1, 5, 400).astype(float)
    mean, stderr = paired(before + 0.01, before, weights)
    assert (mean, stderr) == (pytest.approx(0.01), pytest.approx(0, abs=1e-12))
    assert paired(draw.permutation(before), before, weights)[1] > 0.03


def test_standard_errors_are_those_of_the_dense_gaussian() -> None:
    beliefs = evaluated(np.random.default_rng(3))
    expected = np.sqrt(np.diag(dense(beliefs)[1]))
    assert beliefs.stderr().ravel() == pytest.approx(expected, rel=1e-6)


def test_what_is_missed_is_what_refits_without_each_plan_miss() -> None:
    beliefs = evaluated(np.random.default_rng(4))
    left_out = []
    rows = np.arange(len(beliefs.start))
    for out in range(len(beliefs.plans)):
        keep = [index for index in range(len(beliefs.plans)) if index != out]
        rest = replace(
            beliefs,
            plans=tuple(beliefs.plans[k] for k in keep),
            differences=tuple(beliefs.differences[k] for k in keep),
            noise=tuple(beliefs.noise[k] for k in keep),
        )
        mean = rest.mean()
        change = mean[rows, list(beliefs.plans[out])].sum() - mean[rows, list(beliefs.start)].sum()
        left_out.append(beliefs.differences[out] - change)
    expected = np.sqrt(np.mean(np.square(left_out))) / np.std(beliefs.differences)
    assert beliefs.missed() == pytest.approx(expected, rel=1e-9)
