"""FIT: mean squared gradient times noise power (arXiv 2210.08502).

Damage of a site is E_n‖g_n‖² · ‖Q(w) − w‖²/n: the trace of the empirical Fisher information, g_n the gradient of
one sample's own loss, times the mean squared rounding error. It is HAWQ-V2's score with the Fisher information in
the Hessian's place, so it is as blind to correlations between weights, between layers, and to what is far from the
float point. Without labels, labels are drawn from the model's predictions (the Fisher information itself).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from geoquant.arrays import Floats
from geoquant.errors import ModelError
from geoquant.geometry.per_sample import gradient_norms
from geoquant.geometry.pieces import split
from geoquant.models import batch_size
from geoquant.sensitivity.averaging import sample_mean
from geoquant.sensitivity.passes import GRADIENT_COST, GradientRun, visit_gradients
from geoquant.sensitivity.protocol import PREDICTORS, DamageTable, Subject, table

# A forward and a backward of each sample alone, where a weight's per-sample gradients have no product form.
SINGLY_COST = 3.0


class Fit:
    """E‖g_n‖²·‖Δ‖²/n with the standard error over samples; ranks only."""

    name = "fit"
    unit = None

    def estimated_cost(self, subject: Subject) -> float:
        """Return a forward, the check of the batch's layout, and a backward to the layers' outputs."""
        return GRADIENT_COST

    def measure(self, subject: Subject) -> DamageTable:
        """Take every sample's squared gradient norm at every site from one backward per batch."""
        norms, cost = sample_gradient_norms(subject, self.name)
        mean, error = sample_mean(norms)
        power = subject.squared_errors / np.array([[site.weights] for site in subject.sites])
        damage, stderr = mean[:, None] * power, error[:, None] * power
        return table(self.name, self.unit, subject, damage, stderr, cost, len(norms))


class GradientNorm:
    """The source's "sensitivity-based" rule: E‖g_n‖ · 2^(−bits), more bits where gradients are long.

    The gradient is that of each sample's own loss, since that of a batch depends on its size and vanishes with it
    at a minimum. Looks neither at the grid's step nor at the number of weights; ranks only. Source: docs/sources.md,
    "Curvature-Guided Bit Allocation". Without labels, labels are drawn from the model's predictions.
    """

    name = "gradient_norm"
    unit = None

    def estimated_cost(self, subject: Subject) -> float:
        """Return a forward, the check of the batch's layout, and a backward to the layers' outputs."""
        return GRADIENT_COST

    def measure(self, subject: Subject) -> DamageTable:
        """Take every sample's gradient norm at every site from one backward per batch."""
        norms, cost = sample_gradient_norms(subject, self.name)
        mean, error = sample_mean(np.sqrt(norms))
        fall = 2.0 ** -np.array([[grid.bits for grid in subject.grids]])
        return table(self.name, self.unit, subject, mean[:, None] * fall, error[:, None] * fall, cost, len(norms))


def sample_gradient_norms(subject: Subject, what: str) -> tuple[Floats, float]:
    """Return ‖∇_W‖² of each sample's own loss, (samples, sites), and the cost in forward-equivalents."""
    rows: list[Floats] = []
    singly = 0

    def visit(gradient: GradientRun) -> None:
        nonlocal singly
        found = torch.zeros(gradient.run.samples, len(subject.sites), dtype=torch.float64)
        for place, parameter in enumerate(gradient.run.objective.unique):
            uses, deltas = gradient.calls(place)
            if gradient.run.covered[place] and uses:
                each = gradient_norms(uses, parameter, [delta.unsqueeze(0) for delta in deltas], gradient.run.samples)
                found[:, place] = each[0].double().cpu()
        if gradient.run.loose:
            found[:, gradient.run.loose] = _one_by_one(subject, gradient)
            singly += gradient.run.samples
        rows.append(found.numpy())

    visit_gradients(subject, what, visit)
    norms = np.concatenate(rows)
    return norms, GRADIENT_COST + SINGLY_COST * singly / len(norms)


def _one_by_one(subject: Subject, gradient: GradientRun) -> Tensor:
    """Return squared gradient norms (samples, loose sites) from a backward of each sample alone."""
    objective, loose = gradient.run.objective, gradient.run.loose
    chosen = [objective.unique[place] for place in loose]
    parts: tuple[Any, ...] = split(gradient.batch, 1)
    if len(parts) != gradient.run.samples or any(batch_size(part) != 1 for part in parts):
        name = subject.sites[loose[0]].name
        raise ModelError(f"the batches cannot be cut into samples, which scoring '{name}' needs; give batches of one")
    rows = []
    for index, part in enumerate(parts):
        outputs = objective.scored(part).outputs
        found = torch.autograd.grad(outputs, chosen, gradient.sent[index : index + 1], allow_unused=True)
        rows.append([0.0 if part is None else float(part.double().square().sum()) for part in found])
    return torch.tensor(rows, dtype=torch.float64)


PREDICTORS.register(Fit.name, Fit())
PREDICTORS.register(GradientNorm.name, GradientNorm())
