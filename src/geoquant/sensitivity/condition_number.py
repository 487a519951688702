"""Seed of the project: κ·2^(−b) with κ the condition number of the weight matrix.

The source calls κ a curvature; it is a condition number, and is named so here (docs/sources.md,
"Curvature-Guided Transformer Quantization"). It needs no data, and looks neither at the grid's real step
nor at the number of weights, so expect little of it; it stands here to be compared.
"""

from __future__ import annotations

import numpy as np
import torch

from geoquant.geometry import condition_number
from geoquant.models import get_weight
from geoquant.sensitivity.protocol import PREDICTORS, DamageTable, Subject, table


class ConditionNumber:
    """σ_max/σ_min of each weight matrix times 2^(−bits); ranks only."""

    name = "condition_number"
    unit = None
    by_site = True

    def estimated_cost(self, subject: Subject) -> float:
        """Cost no forward at all."""
        return 0.0

    def measure(self, subject: Subject) -> DamageTable:
        """Take a singular value decomposition of each site's matrix."""
        kappa = np.array([_finite_condition(site.matrix(get_weight(subject.model, site))) for site in subject.sites])
        damage = kappa[:, None] * 2.0 ** -np.array([grid.bits for grid in subject.grids])
        return table(self.name, self.unit, subject, damage, np.zeros_like(damage), cost=0.0, samples=0)


def _finite_condition(matrix: torch.Tensor) -> float:
    """Cap κ where a matrix loses rank in float32: there every value beyond 1/(n·eps) means the same."""
    cap = 1.0 / (max(matrix.shape) * torch.finfo(torch.float32).eps)
    return min(float(condition_number(matrix).value), cap)


PREDICTORS.register(ConditionNumber.name, ConditionNumber())
