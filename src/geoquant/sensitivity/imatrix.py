"""Σ δ²·E[x²]: the weight error, each input weighted by how strongly it is used.

The importance matrix of llama.cpp. It is the output error of a layer whose inputs are uncorrelated, and says nothing
of what the network does with that output. Averages are over positions (tokens, pixels), as in the source. Needs
no labels.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from geoquant.arrays import Floats
from geoquant.sensitivity.averaging import sample_mean
from geoquant.sensitivity.passes import applied, visit_inputs
from geoquant.sensitivity.protocol import PREDICTORS, DamageTable, Subject, table


class IMatrix:
    """Squared weight error weighted by E[x²] of its input, with the standard error over samples; ranks only."""

    name = "imatrix"
    unit = None

    def estimated_cost(self, subject: Subject) -> float:
        """Return a forward, and all layers once per grid."""
        return 1.0 + len(subject.grids)

    def measure(self, subject: Subject) -> DamageTable:
        """Send squared inputs through squared displacements: Σ_ij δ_ij² x_j², whatever the layer's layout.

        Raises:
            ModelError: a site is no weight of a plain layer (attention's own projections).
        """
        rows: list[Floats] = []
        calls: list[tuple[int, Tensor]] = []

        def look(place: int, module: nn.Module, seen: Tensor) -> None:
            squared = seen.square() if seen.is_floating_point() else seen  # an embedding's inputs are one-hot
            for column in range(len(subject.grids)):
                error = applied(module, subject.displacement(place, column).square(), squared)
                calls.append((place * len(subject.grids) + column, _per_position(module, error)))

        def done(samples: int) -> None:
            found = np.zeros((samples, len(subject.sites) * len(subject.grids)))
            for slot, error in calls:
                found[:, slot] += _by_sample(error, samples)
            calls.clear()
            rows.append(found.reshape(samples, len(subject.sites), len(subject.grids)))

        visit_inputs(subject, self.name, look, done)
        mean, stderr = sample_mean(rows)
        return table(self.name, self.unit, subject, mean, stderr, self.estimated_cost(subject), subject.samples)


def _per_position(module: nn.Module, error: Tensor) -> Tensor:
    """Sum over output channels: before the spatial axes of convolutions, the last axis elsewhere."""
    axes = len(module.kernel_size) if isinstance(module, nn.modules.conv._ConvNd) else 0
    return error.sum(-1 - axes)


def _by_sample(error: Tensor, samples: int) -> Floats:
    """Average over positions; what is not laid out by sample (a table of positions) counts for all alike."""
    whole = error.numel() % samples == 0
    each = error.reshape(samples, -1).mean(1) if whole else error.mean().expand(samples)
    found: Floats = each.double().cpu().numpy()
    return found


PREDICTORS.register(IMatrix.name, IMatrix())
