"""What will a measure of the Hessian cost here? One forward of a few samples says which layers have a cheap exact form.

Where the network is piecewise affine in a layer, its block of the Hessian is the Gauss-Newton matrix, known from one
backward per class; where a layer's weight is used in a way that has no product form, or the network is curved in it,
random directions are needed.
"""

from __future__ import annotations

from dataclasses import dataclass

from geoquant.geometry import make_objective
from geoquant.geometry.gauss_newton import EXACT_COLUMNS
from geoquant.geometry.hvp import GRAPH_COST, PRODUCT_COST
from geoquant.geometry.sweep import sweep
from geoquant.sensitivity.passes import loss_name
from geoquant.sensitivity.protocol import Subject


@dataclass(frozen=True)
class Outlook:
    """What the first few samples say of the sites.

    Attributes:
        outputs: numbers that the network answers per sample.
        covered: whether any site has per-sample gradients in product form.
        loose: sites that have not.
        curved: sites whose block of the Hessian is more than Gauss-Newton.
    """

    outputs: int
    covered: bool
    loose: tuple[int, ...]
    curved: tuple[int, ...]

    def cost(self, probes: int) -> float:
        """Return what traces and diagonals of the Hessian cost in forward-equivalents."""
        directions = self.outputs if self.outputs <= EXACT_COLUMNS else probes
        gauss = 2.0 + 2.0 * directions * self.covered + 2.0 * probes * bool(self.loose)
        return gauss + (GRAPH_COST + PRODUCT_COST * probes) * bool(self.curved)


def outlook(subject: Subject) -> Outlook:
    """Run the first few samples forward and read the graph."""
    objective = make_objective(
        subject.model, subject.batches[:1], subject.sites, loss=loss_name(subject), forward=subject.forward, piece=8
    )
    with objective.studied():
        run = sweep(objective, objective.batches[0])
    free = objective.criterion is None or objective.criterion.name == "kl"
    curved = tuple(row for row, affine in enumerate(run.structure.affine) if not (affine or free))
    return Outlook(run.scored.outputs[0].numel(), any(run.covered), tuple(run.loose), curved)
