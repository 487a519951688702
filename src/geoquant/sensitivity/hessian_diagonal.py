"""½Σ h_kk δ_k²: the displacement's cost when every weight is curved alone.

The source's "Hessian-diagonal" baseline (docs/sources.md, "Curvature-Guided Bit Allocation"): the diagonal of the
loss's Hessian, errors not composed. It weighs every weight by its own curvature, which HAWQ-V2 averages over the
layer, and drops all correlations. Labels are used where there are some; without, the divergence from the model's own
predictions is differentiated. Negative entries count as zero.
"""

from __future__ import annotations

import numpy as np

from geoquant.geometry import hessian_diagonal
from geoquant.sensitivity.passes import loss_name
from geoquant.sensitivity.protocol import PREDICTORS, DamageTable, Subject, table
from geoquant.sensitivity.second_order import outlook


class HessianDiagonal:
    """½Σ h_kk δ_k² with the standard error of the probes (0 where the diagonal is exact); ranks only.

    Args:
        probes: random directions where there is no exact form, at least 2.
    """

    name = "hessian_diagonal"
    unit = None

    def __init__(self, probes: int = 8) -> None:
        self.probes = probes

    def estimated_cost(self, subject: Subject) -> float:
        """Return a forward and a backward per class or probe; more where the network is curved in a layer."""
        return outlook(subject).cost(self.probes)

    def measure(self, subject: Subject) -> DamageTable:
        """Take the diagonal once and weigh every squared displacement with it."""
        diagonals = hessian_diagonal(
            subject.model,
            subject.batches,
            subject.sites,
            forward=subject.forward,
            loss=loss_name(subject),
            probes=self.probes,
            seed=subject.seed,
        )
        damage = np.zeros((len(subject.sites), len(subject.grids)))
        stderr = np.zeros_like(damage)
        for row, site in enumerate(subject.sites):
            diagonal = diagonals[site.name]
            for column in range(len(subject.grids)):
                squared = subject.displacement(row, column).double().square()
                damage[row, column] = float((diagonal.value.to(squared).clamp(min=0) * squared).sum()) / 2
                stderr[row, column] = float((diagonal.stderr.to(squared) * squared).norm()) / 2
        cost = next(iter(diagonals.values())).cost
        return table(self.name, self.unit, subject, damage, stderr, cost, subject.samples)


PREDICTORS.register(HessianDiagonal.name, HessianDiagonal())
