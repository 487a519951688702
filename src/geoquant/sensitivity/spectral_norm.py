"""Seed of the project: κ·2^(−b) with κ the spectral norm of the weight matrix.

The source calls κ a curvature; of a linear map it is the largest stretch. For a convolution it is that of the
reshaped kernel, as in the source, and not of the operator (docs/sources.md, "Curvature-Guided Transformer
Quantization"). It needs no data, and looks neither at the grid's real step nor at the loss.
"""

from __future__ import annotations

import numpy as np

from geoquant.geometry import spectral_norm
from geoquant.models import get_weight
from geoquant.sensitivity.protocol import PREDICTORS, DamageTable, Subject, table


class SpectralNorm:
    """σ_max of each weight matrix times 2^(−bits); ranks only."""

    name = "spectral_norm"
    unit = None
    by_site = True

    def estimated_cost(self, subject: Subject) -> float:
        """Cost no forward at all."""
        return 0.0

    def measure(self, subject: Subject) -> DamageTable:
        """Take the largest singular value of each site's matrix."""
        sigma = np.array([spectral_norm(site.matrix(get_weight(subject.model, site))).value for site in subject.sites])
        damage = sigma[:, None] * 2.0 ** -np.array([grid.bits for grid in subject.grids])
        return table(self.name, self.unit, subject, damage, np.zeros_like(damage), cost=0.0, samples=0)


PREDICTORS.register(SpectralNorm.name, SpectralNorm())
