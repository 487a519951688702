"""½δᵀHδ: the loss's curvature along the very displacement of one layer's weights.

Where the network is piecewise affine in the layer, or the loss is the divergence from the model's own predictions,
H is the Gauss-Newton matrix and `gauss_newton_form` gives the answer for all layers at once; elsewhere the
remainder of the Hessian is added by one Hessian-vector product per displacement. With labels, the loss is theirs, the
gradient's own term is left out, and negative forms count as zero. Second order at the float point, layers alone.
"""

from __future__ import annotations

import numpy as np

from geoquant.arrays import Floats
from geoquant.geometry import make_objective
from geoquant.geometry.hutchinson import dots
from geoquant.geometry.hvp import GRAPH_COST, PRODUCT_COST, products
from geoquant.progress import task
from geoquant.sensitivity.gauss_newton_form import gauss_newton_shifts, shifts_cost
from geoquant.sensitivity.passes import loss_name
from geoquant.sensitivity.protocol import PREDICTORS, DamageTable, Subject, table
from geoquant.sensitivity.second_order import outlook


class HessianForm:
    """½δᵀHδ of every choice alone; ranks only.

    The standard error is that of the Gauss-Newton part over samples.

    Args:
        probes: random directions for the Gauss-Newton part where a sample has more than 64 outputs.
    """

    name = "hessian_form"
    unit = None

    def __init__(self, probes: int = 8) -> None:
        self.probes = probes

    def estimated_cost(self, subject: Subject) -> float:
        """Return the Gauss-Newton part, and a Hessian-vector product per choice at layers that are not affine."""
        return shifts_cost(subject, self.probes) + _remainder_cost(subject, outlook(subject).curved)

    def measure(self, subject: Subject) -> DamageTable:
        """Add the two parts of the Hessian along every displacement."""
        shifts = gauss_newton_shifts(subject, self.probes, self.name)
        damage, stderr = shifts.alone()
        curved = outlook(subject).curved
        with task("Hessian remainder", len(curved)) as advance:
            for row in curved:
                damage[row] += _remainder(subject, row) / 2
                advance()
        cost = shifts.cost + _remainder_cost(subject, curved)
        return table(self.name, self.unit, subject, np.maximum(damage, 0.0), stderr, cost, len(shifts.predictions))


def _remainder_cost(subject: Subject, curved: tuple[int, ...]) -> float:
    return len(curved) * (GRAPH_COST + PRODUCT_COST * len(subject.grids))


def _remainder(subject: Subject, row: int) -> Floats:
    """Return δᵀRδ of one site on every grid, (grids,)."""
    objective = make_objective(
        subject.model, subject.batches, [subject.sites[row]], loss=loss_name(subject), forward=subject.forward
    )
    shifts = [[subject.displacement(row, column)] for column in range(len(subject.grids))]
    images = products(objective, shifts, "remainder")
    return np.array([float(dots(shift, image)[0]) for shift, image in zip(shifts, images, strict=True)])


PREDICTORS.register(HessianForm.name, HessianForm())
