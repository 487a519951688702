"""What does each choice cost, given a table of predictions and some whole plans that were really evaluated?

Bayesian linear regression. The damage of a choice is its predicted one times a common factor, times a factor of its
site, plus something of its own; all three are Gaussian and widest where predictions are large. A whole plan's damage
is the sum over sites, known up to the noise of its samples and a share that sums leave out. Its answers are exact for
that model; that damages add up is a good assumption only near the plans that were evaluated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from geoquant.arrays import Floats

Columns = tuple[int, ...]

COMMON, SITE, OWN = 0.5, 0.7, 0.3
"""Standard deviations of the three factors, relative to the prediction."""
ALONE = 0.1
"""And of a choice's own part beyond that, relative to the mean prediction."""
NOT_ADDITIVE = 0.05
"""Share of a difference between plans that the sum over sites may miss."""


@dataclass(frozen=True, eq=False)
class Beliefs:
    """The damage (sites, grids) of all choices, as a Gaussian.

    Attributes:
        prior: (sites, grids) expected damage before any evaluation, 0 where a choice is not allowed.
        start: the plan that differences refer to.
        plans: plans that were evaluated.
        differences: what each was worse than `start`.
        noise: standard error of each difference.

    >>> beliefs = Beliefs.of(np.array([[4.0, 1.0], [4.0, 1.0]]), (1, 1), damage=2.0)
    >>> wiser = beliefs.after((0, 1), 9.0, 0.01).after((1, 0), 1.0, 0.01)    # 3 more was predicted of each
    >>> change = wiser.mean() - wiser.mean()[:, 1:]
    >>> change[:, 0].round(1).tolist()
    [8.8, 1.0]
    """

    prior: Floats
    start: Columns
    plans: tuple[Columns, ...] = ()
    differences: tuple[float, ...] = ()
    noise: tuple[float, ...] = ()

    @staticmethod
    def of(predicted: Floats, start: Columns, damage: float) -> Beliefs:
        """Scale `predicted` (any unit; inf: not allowed) so that the start plan's damage is the measured one."""
        known = np.where(np.isfinite(predicted), np.maximum(predicted, 0.0), 0.0)
        total = float(known[np.arange(len(start)), list(start)].sum())
        scale = damage / total if total > 0 and damage > 0 else 1.0
        return Beliefs(known * scale, start)

    def after(self, columns: Columns, difference: float, stderr: float) -> Beliefs:
        """Take in one evaluation."""
        noise = math.hypot(stderr, NOT_ADDITIVE * difference, 1e-12)
        return replace(
            self,
            plans=(*self.plans, columns),
            differences=(*self.differences, difference),
            noise=(*self.noise, noise),
        )

    def scaled(self, factor: float) -> Beliefs:
        """Return the same in another unit."""
        differences, noise = (tuple(factor * value for value in values) for values in (self.differences, self.noise))
        return replace(self, prior=factor * self.prior, differences=differences, noise=noise)

    def mean(self) -> Floats:
        """Return the expected damage (sites, grids)."""
        return self._corrected(self.prior, np.zeros(len(self.plans)))

    def stderr(self) -> Floats:
        """Return the standard deviation (sites, grids) of each damage."""
        variance = (COMMON**2 + SITE**2) * np.square(self.prior) + np.square(self._own())
        if self.plans:
            features = self._features()
            spread = self._covaried(features)
            solved = np.linalg.solve(self._kernel(features, spread), spread.reshape(len(spread), -1))
            variance = variance - np.einsum("kc,kc->c", spread.reshape(solved.shape), solved).reshape(variance.shape)
        return np.asarray(np.sqrt(np.maximum(variance, 0.0)), np.float64)

    def missed(self) -> float:
        """Return the root mean square by which plans are missed when predicted from all others, over their spread.

        Below 1 something was learned; the spread is the plans' standard deviation. Leaving one out needs no refit:
        with kernel K, the k-th residual is (K⁻¹ r)ₖ / (K⁻¹)ₖₖ.
        """
        features = self._features()
        inverse = np.linalg.inv(self._kernel(features, self._covaried(features)))
        left_out = inverse @ self._residuals(features, self.prior) / np.diag(inverse)
        return float(np.sqrt(np.square(left_out).mean()) / max(float(np.std(self.differences)), 1e-300))

    def draw(self, generator: np.random.Generator) -> Floats:
        """Return damages that may well be true: one sample of the Gaussian (Matheron's rule)."""
        sites = self.prior.shape[0]
        common, site = generator.standard_normal(), generator.standard_normal((sites, 1))
        own = generator.standard_normal(self.prior.shape) * self._own()
        sample = self.prior * (1 + COMMON * common + SITE * site) + own
        return self._corrected(sample, generator.standard_normal(len(self.plans)) * np.array(self.noise))

    def _own(self) -> Floats:
        return np.asarray(np.hypot(OWN * self.prior, ALONE * self.prior.mean()), np.float64)

    def _features(self) -> Floats:
        """Return (plans, sites, grids): +1 at each plan's choices, −1 at the start's."""
        features = np.zeros((len(self.plans), *self.prior.shape))
        rows = np.arange(len(self.start))
        for index, columns in enumerate(self.plans):
            features[index, rows, list(columns)] += 1
            features[index, rows, list(self.start)] -= 1
        return features

    def _corrected(self, damage: Floats, noise: Floats) -> Floats:
        """Move `damage` to where it agrees with what was measured, up to the noise."""
        if not self.plans:
            return damage
        features = self._features()
        spread = self._covaried(features)
        weights = np.linalg.solve(self._kernel(features, spread), self._residuals(features, damage) - noise)
        return np.asarray(damage + np.einsum("k,ksg->sg", weights, spread), np.float64)

    def _kernel(self, features: Floats, spread: Floats) -> Floats:
        """Return the covariance (plans, plans) of what is measured."""
        return np.asarray(np.einsum("ksg,lsg->kl", features, spread) + np.diag(np.square(self.noise)), np.float64)

    def _residuals(self, features: Floats, damage: Floats) -> Floats:
        """Return (plans,) what `damage` does not explain."""
        return np.asarray(np.array(self.differences) - np.einsum("ksg,sg->k", features, damage), np.float64)

    def _covaried(self, features: Floats) -> Floats:
        """Return the prior covariance times each of `features` (plans, sites, grids)."""
        by_site = np.einsum("ksg,sg->ks", features, self.prior)
        common = COMMON**2 * by_site.sum(1)[:, None, None] * self.prior
        site = SITE**2 * by_site[:, :, None] * self.prior
        return np.asarray(common + site + features * self._own() ** 2, np.float64)


def paired(after: Floats, before: Floats, weights: Floats) -> tuple[float, float]:
    """Return mean and standard error of the difference on the same samples, weighted by their predictions.

    >>> paired(np.array([2.0, 4.0]), np.array([1.0, 1.0]), np.ones(2))
    (2.0, 1.0)
    """
    difference, total = after - before, float(weights.sum())
    mean = float(weights @ difference) / total
    if len(weights) < 2:
        return mean, 0.0
    residual = float(np.square(weights * (difference - mean)).sum())
    return mean, math.sqrt(residual * len(weights) / (len(weights) - 1)) / total
