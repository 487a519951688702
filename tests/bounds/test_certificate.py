"""Coverage by resampling, tightness, anytime validity, and what breaks when the assumption is broken."""

from __future__ import annotations

import math

import numpy as np
import pytest

from geoquant.bounds.certificate import (
    ASSUMPTION,
    CertificateSequence,
    accuracy_changes,
    certify_accuracy,
    certify_loss,
    loss_changes,
)
from geoquant.bounds.mean_bounds import METHODS, anytime_upper_mean_bound, mixture_capital, upper_mean_bound
from geoquant.errors import DataError, GeoquantError

DRAWS = 1000
POPULATIONS = {
    "rare flips": np.repeat([0.0, 0.5, 1.0], [4, 989, 7]),
    "flips": np.repeat([0.0, 0.5, 1.0], [30, 920, 50]),
    "coin": np.repeat([0.0, 1.0], [50, 50]),
    "skewed losses": np.clip(np.random.default_rng(7).lognormal(-4, 1.5, 4000), 0, 1),
    "rare disasters": np.repeat([0.01, 1.0], [995, 5]),
}


def draws(population: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(population, (DRAWS, count))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", POPULATIONS)
@pytest.mark.parametrize(("count", "alpha"), [(50, 0.1), (300, 0.05)])
def test_coverage_over_a_thousand_draws(name: str, method: str, count: int, alpha: float):
    population = POPULATIONS[name]
    bounds = upper_mean_bound(draws(population, count), alpha, method)
    assert np.mean(bounds >= population.mean()) >= 1 - alpha


def test_the_normal_approximation_does_not_cover():
    # The negative twin: mean + 1.64 σ/√n looks tighter and is wrong where disasters are rare.
    population = POPULATIONS["rare disasters"]
    sample = draws(population, 50)
    normal = sample.mean(-1) + 1.645 * sample.std(-1, ddof=1) / math.sqrt(50)
    assert np.mean(normal >= population.mean()) < 0.5


@pytest.mark.parametrize("name", POPULATIONS)
def test_betting_is_the_tightest(name: str):
    sample = draws(POPULATIONS[name], 300)[:100]
    widths = {method: float((upper_mean_bound(sample, 0.05, method) - sample.mean(-1)).mean()) for method in METHODS}
    assert widths["betting"] < 0.95 * widths["empirical-bernstein"]
    assert widths["betting"] < widths["hoeffding"]


@pytest.mark.parametrize("name", POPULATIONS)
def test_the_anytime_bound_holds_at_all_looks_at_once(name: str):
    # The bound after t draws lies below the mean exactly when the capital against that mean has reached 1/α.
    population = POPULATIONS[name]
    sample, alpha = draws(population, 400), 0.1
    capital = mixture_capital(sample, float(population.mean()))
    assert np.mean(capital.max(-1) < math.log(1 / alpha)) >= 1 - alpha
    for look in (20, 150, 400):
        # The thirty draws with the most capital, so that both answers occur.
        rich = capital[:, look - 1].argsort()[-30:]
        wrong = anytime_upper_mean_bound(sample[rich, :look], alpha) < population.mean() - 1e-9
        assert np.array_equal(wrong, capital[rich, look - 1] > math.log(1 / alpha))


def test_repeated_looks_need_the_anytime_bound():
    # The negative twin: Hoeffding's bound is valid at each look and not over all of them.
    population, alpha = POPULATIONS["coin"], 0.3
    sample = draws(population, 3000)
    means = sample.cumsum(-1) / np.arange(1, 3001)
    bounds = means + np.sqrt(math.log(1 / alpha) / (2 * np.arange(1, 3001)))
    assert np.mean(bounds[:, -1] >= 0.5) >= 1 - alpha
    assert np.mean((bounds >= 0.5).all(-1)) < 1 - alpha


def test_selecting_the_plan_on_the_same_samples_breaks_the_promise():
    # 200 equally bad plans; the one that looks best on the samples is certified on them.
    rng, alpha = np.random.default_rng(1), 0.1
    population = POPULATIONS["flips"]
    held = []
    for _ in range(60):
        plans = rng.choice(population, (200, 100))
        best = plans[plans.mean(-1).argmin()]
        held.append(float(upper_mean_bound(best, alpha)) >= population.mean())
    assert np.mean(held) < 1 - alpha
    assert "never selected the plan" in ASSUMPTION


def test_capital_is_a_fair_game_at_the_mean_and_increases_in_it():
    sample = draws(POPULATIONS["flips"], 60)
    mean = float(POPULATIONS["flips"].mean())
    assert np.exp(mixture_capital(sample, mean)).mean(0) == pytest.approx(np.ones(60), abs=0.35)
    grid = np.linspace(0.4, 0.9, 30)
    paths = np.stack([mixture_capital(sample[0], m)[-1] for m in grid])
    assert np.all(np.diff(paths) > 0)


def test_bounds_shrink_towards_the_mean_at_the_fast_rate_when_nothing_varies():
    widths = [float(upper_mean_bound(np.full(n, 0.5), 0.05)) - 0.5 for n in (100, 1000, 10_000)]
    assert widths[1] == pytest.approx(widths[0] / 10, rel=0.3)
    assert widths[2] == pytest.approx(widths[1] / 10, rel=0.3)


def test_all_ones_bound_nothing_and_all_zeros_bound_much():
    assert float(upper_mean_bound(np.ones(50), 0.05)) == 1.0
    assert float(anytime_upper_mean_bound(np.ones(50), 0.05)) == 1.0
    assert float(upper_mean_bound(np.zeros(50), 0.05)) < 0.09  # 1 − α^{1/50} = 0.058 is the best possible


def test_a_pairing_is_what_makes_the_certificate_sharp():
    rng = np.random.default_rng(0)
    correct = (rng.random(2000) < 0.9).astype(float)
    quantized = correct.copy()
    quantized[rng.choice(2000, 20, replace=False)] = 0
    paired = certify_accuracy(correct, quantized)
    shuffled = certify_accuracy(correct, rng.permutation(quantized))
    assert paired.upper_bound - paired.observed < 0.6 * (shuffled.upper_bound - shuffled.observed)
    assert paired.observed == pytest.approx(shuffled.observed)


def test_changes_have_the_sign_of_harm_and_are_clipped():
    assert accuracy_changes([1, 0, 1], [0, 1, 1]).tolist() == [1.0, -1.0, 0.0]
    assert loss_changes([1.0, 1.0, 1.0], [9.0, -9.0, 1.25], 2.0).tolist() == [2.0, -2.0, 0.25]
    certificate = certify_loss(np.zeros(1000), np.full(1000, 9.0), 2.0)
    assert certificate.observed == certificate.upper_bound == 2.0


@pytest.mark.parametrize("method", METHODS)
def test_a_certificate_carries_its_assumption_and_scale(method: str):
    small = certify_loss(np.zeros(400), np.linspace(-0.01, 0.03, 400), 0.5, method=method)
    large = certify_loss(np.zeros(400), 10 * np.linspace(-0.01, 0.03, 400), 5.0, method=method)
    assert large.upper_bound == pytest.approx(10 * small.upper_bound)
    assert small.observed < small.upper_bound < 0.5
    assert ASSUMPTION in str(small)


def test_a_sequence_keeps_its_best_bound_and_ends_no_tighter_than_a_fixed_sample():
    rng = np.random.default_rng(0)
    changes = rng.choice([-1.0, 0.0, 1.0], 1200, p=[0.01, 0.97, 0.02])
    sequence, seen = CertificateSequence("accuracy drop"), []
    for part in np.split(changes, 6):
        sequence = sequence.after(part)
        seen.append(sequence.certificate.upper_bound)
    assert seen == sorted(seen, reverse=True)
    assert sequence.certificate.samples == 1200
    fixed = upper_mean_bound((changes + 1) / 2, 0.05) * 2 - 1
    assert fixed < sequence.certificate.upper_bound < fixed + 0.03


def test_impossible_samples_are_refused():
    with pytest.raises(DataError, match="two samples"):
        certify_accuracy([1], [1])
    with pytest.raises(DataError, match="per sample and model"):
        certify_accuracy([1, 0, 1], [1, 0])
    with pytest.raises(DataError, match="0 or 1"):
        certify_accuracy([1, 0.5], [1, 0])
    with pytest.raises(DataError, match="NaN"):
        certify_loss([0.0, math.nan], [0.0, 0.0], 1.0)
    with pytest.raises(DataError, match="cap"):
        certify_loss([0.0, 0.0], [0.0, 0.0], 0.0)
    with pytest.raises(DataError, match=r"\[0, 1\]"):
        upper_mean_bound([0.0, 1.5], 0.05)
    with pytest.raises(DataError, match="within"):
        CertificateSequence("accuracy drop").after([0.0, 2.0])
    with pytest.raises(DataError, match="no samples"):
        _ = CertificateSequence("accuracy drop").certificate
    with pytest.raises(GeoquantError, match="confidence"):
        certify_accuracy([1, 0], [1, 0], confidence=1.0)
    with pytest.raises(GeoquantError, match="method"):
        certify_accuracy([1, 0], [1, 0], method="hope")
    with pytest.raises(GeoquantError, match="alpha"):
        upper_mean_bound([0.0, 1.0], 0.0)
