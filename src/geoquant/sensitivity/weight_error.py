"""How far do the weights move? Damage as ‖Q(w) − w‖², no data needed.

Exact for the given weights and silent about what the network does with them: it takes every layer's
Hessian for the same multiple of the identity. With an exact solver it is a strong baseline all the same.
"""

from __future__ import annotations

import numpy as np

from geoquant.sensitivity.protocol import PREDICTORS, DamageTable, Subject, table


class WeightError:
    """Squared rounding error of each weight matrix, in squared weight units; ranks only."""

    name = "weight_error"
    unit = None
    by_site = True

    def estimated_cost(self, subject: Subject) -> float:
        """Cost no forward at all."""
        return 0.0

    def measure(self, subject: Subject) -> DamageTable:
        """Round every site on every grid and sum the squared errors."""
        errors = subject.squared_errors
        return table(self.name, self.unit, subject, errors, np.zeros_like(errors), cost=0.0, samples=0)


PREDICTORS.register(WeightError.name, WeightError())
