"""½δᵀ(A⊗G)δ: the displacement's cost when a layer's curvature is taken for a Kronecker product.

A is the second moment of what the layer saw, G of what came back (K-FAC, arXiv 1503.05671; convolutions
arXiv 1602.01407). Once the factors are known every grid is free. It keeps correlations between inputs and between
outputs, and drops those between the two: an approximation of `gauss_newton_form`. Needs no labels.
"""

from __future__ import annotations

import numpy as np

from geoquant.errors import ModelError
from geoquant.geometry import kronecker_factors
from geoquant.models import inference, predict
from geoquant.sensitivity.protocol import PREDICTORS, DamageTable, Subject, table


class KFac:
    """½δᵀ(A⊗G)δ with the standard error over random directions (0 with few classes); ranks only.

    Args:
        probes: random directions where a sample has more than 64 outputs, at least 2.
    """

    name = "kfac"
    unit = None

    def __init__(self, probes: int = 8) -> None:
        self.probes = probes

    def estimated_cost(self, subject: Subject) -> float:
        """Return a forward, the check of the layout, and a backward per class or probe."""
        with inference(subject.model):
            outputs = predict(subject.model, subject.batches[0], subject.forward)[0].numel()
        return 2.0 + 2.0 * (outputs if outputs <= 64 else self.probes)

    def measure(self, subject: Subject) -> DamageTable:
        """Take the factors once and evaluate the form at every displacement.

        Raises:
            ModelError: a site is no weight of a plain layer (attention's own projections).
        """
        try:
            factors = kronecker_factors(
                subject.model,
                subject.batches,
                subject.sites,
                forward=subject.forward,
                loss="kl",
                probes=self.probes,
                seed=subject.seed,
            )
        except ModelError as error:
            raise ModelError(
                f"kfac cannot score every site: {error} (exclude=), or choose another predictor"
            ) from error
        damage = np.zeros((len(subject.sites), len(subject.grids)))
        stderr = np.zeros_like(damage)
        for row, site in enumerate(subject.sites):
            for column in range(len(subject.grids)):
                form = factors[site.name].quadratic(subject.displacement(row, column))
                damage[row, column], stderr[row, column] = form.value / 2, form.stderr / 2
        cost = next(iter(factors.values())).cost
        return table(self.name, self.unit, subject, damage, stderr, cost, subject.samples)


PREDICTORS.register(KFac.name, KFac())
