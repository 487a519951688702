"""Σ(∂L/∂Y · (Y_q − Y))²: how far does each layer's output move, weighted by the loss's gradient there?

The score of ModelOpt's `auto_quantize` (method "gradient"), at the float model: Y_q is what one layer answers with
rounded weights to its float inputs, and the squares of the first-order changes of the loss are added over the
outputs of a sample. The squares stand in for a diagonal Fisher information in output space: correlations between
outputs, and between layers, are dropped. Without labels, labels are drawn from the model's predictions.
"""

from __future__ import annotations

import numpy as np
import torch

from geoquant.arrays import Floats
from geoquant.sensitivity.averaging import sample_mean
from geoquant.sensitivity.passes import GRADIENT_COST, GradientRun, applied, refuse_loose, visit_gradients
from geoquant.sensitivity.protocol import PREDICTORS, DamageTable, Subject, table


class ModelOptGradient:
    """Σ over outputs of (∂L/∂Y·ΔY)², mean over samples; ranks only."""

    name = "modelopt_gradient"
    unit = None

    def estimated_cost(self, subject: Subject) -> float:
        """Return one backward to the layers' outputs, and all layers once per grid."""
        return GRADIENT_COST + len(subject.grids)

    def measure(self, subject: Subject) -> DamageTable:
        """Apply every displacement to what its layer saw; weight it by what came back.

        Raises:
            ModelError: a site is no weight of a plain layer (attention's own projections).
        """
        rows: list[Floats] = []

        def visit(gradient: GradientRun) -> None:
            refuse_loose(subject, gradient.run, self.name)
            rows.append(_scores(subject, gradient))

        visit_gradients(subject, self.name, visit)
        mean, stderr = sample_mean(rows)
        return table(self.name, self.unit, subject, mean, stderr, self.estimated_cost(subject), subject.samples)


def _scores(subject: Subject, gradient: GradientRun) -> Floats:
    """Return the scores of one batch, (samples, sites, grids)."""
    samples = gradient.run.samples
    found = np.zeros((samples, len(subject.sites), len(subject.grids)))
    for place in range(len(subject.sites)):
        uses, deltas = gradient.calls(place)
        for column in range(len(subject.grids)) if uses else ():
            shift = subject.displacement(place, column)
            total = torch.zeros(samples, dtype=torch.float64)
            for use, delta in zip(uses, deltas, strict=True):
                moved = delta * applied(use.module, shift, use.seen)
                total += moved.double().square().reshape(samples, -1).sum(1).cpu()
            found[:, place, column] = total.numpy()
    return found


PREDICTORS.register(ModelOptGradient.name, ModelOptGradient())
