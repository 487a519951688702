"""HAWQ-V2: mean Hessian eigenvalue times squared rounding error (arXiv 1911.03852).

Damage of site i at a grid is (tr H_i / n_i)·‖Q(w_i) − w_i‖², with the trace of the loss Hessian's diagonal
block. The paper probes the traces; here they are exact where the net is piecewise affine in the layer
(every layer of a ReLU net) and probed elsewhere. Second order at the float point, blocks taken alone,
eigenvalues averaged: three reasons why it misleads at few bits.
"""

from __future__ import annotations

import numpy as np

from geoquant.geometry import hessian_traces
from geoquant.sensitivity.passes import loss_name
from geoquant.sensitivity.protocol import PREDICTORS, DamageTable, Subject, table
from geoquant.sensitivity.second_order import outlook


class HawqV2:
    """(tr H / n)·‖Δ‖² with the standard error of the trace; ranks only.

    Args:
        probes: random directions for layers whose trace has no exact form, at least 2.
    """

    name = "hawq_v2"
    unit = None

    def __init__(self, probes: int = 8) -> None:
        self.probes = probes

    def estimated_cost(self, subject: Subject) -> float:
        """Return a forward and a backward per class or probe; more where the network is curved in a layer."""
        return outlook(subject).cost(self.probes)

    def measure(self, subject: Subject) -> DamageTable:
        """Take all traces in one go; negative estimates count as zero damage."""
        traces = hessian_traces(
            subject.model,
            subject.batches,
            subject.sites,
            forward=subject.forward,
            loss=loss_name(subject),
            probes=self.probes,
            seed=subject.seed,
        )
        weights = np.array([site.weights for site in subject.sites])
        value = np.array([traces[site.name].value for site in subject.sites]) / weights
        error = np.array([traces[site.name].stderr for site in subject.sites]) / weights
        damage = np.maximum(value, 0.0)[:, None] * subject.squared_errors
        stderr = error[:, None] * subject.squared_errors
        cost = max(trace.cost for trace in traces.values())
        return table(self.name, self.unit, subject, damage, stderr, cost, subject.samples)


PREDICTORS.register(HawqV2.name, HawqV2())
