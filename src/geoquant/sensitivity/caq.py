"""CAQ's composed error: each layer's rounding error by its stretch and curvature, carried through all later layers.

The source's error functional (docs/sources.md, "Curvature-Guided Bit Allocation"): a layer kept at p bits errs by
L‖x‖2^(−p) + κ‖x‖²2^(−2p), and the network by the sum of these, each times the product of the later layers' L. Here
L is the norm of the real linear operator, ‖x‖ the largest input norm seen, and κ the source's output-energy
sensitivity, which is 2L² for a linear layer. The source's composition is a chain: sites in the order in which they
are called, norms and residual adds passed over, so it is no bound; it looks neither at the grid nor at the loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from geoquant.arrays import Floats
from geoquant.geometry import spectral_norm
from geoquant.geometry.factors import is_gpt2_conv1d
from geoquant.sensitivity.passes import visit_inputs
from geoquant.sensitivity.protocol import PREDICTORS, DamageTable, Subject, table


@dataclass(frozen=True)
class LayerConstants:
    """What CAQ knows of one site.

    Attributes:
        site: its name.
        lipschitz: norm of the layer's linear operator at its real input size.
        kappa: output-energy sensitivity, the Hessian norm of ‖f(x)‖²: 2·lipschitz² for a linear layer.
        diameter: largest input norm on the calibration set (of a token for Linear, an image for convolutions; 1
            for embeddings, whose inputs are one-hot).
        order: place among the calls of a forward.
        input_shape: of what enters for one sample, the batch axis left out.
    """

    site: str
    lipschitz: float
    kappa: float
    diameter: float
    order: int
    input_shape: tuple[int, ...] = ()


class Caq:
    """The composed error of each choice alone, relative to the largest one; ranks only."""

    name = "caq"
    unit = None

    def estimated_cost(self, subject: Subject) -> float:
        """Return one forward; operator norms look at no data."""
        return 1.0

    def measure(self, subject: Subject) -> DamageTable:
        """Compose every choice's error with the later layers' Lipschitz constants.

        Raises:
            ModelError: a site is no weight of a plain layer (attention's own projections).
        """
        logarithms = composed_log_error(caq_constants(subject), np.array([grid.bits for grid in subject.grids]))
        # Products over deep networks leave the range of floats, so the largest choice counts as one.
        damage = np.exp(logarithms - logarithms.max())
        return table(self.name, self.unit, subject, damage, np.zeros_like(damage), 1.0, subject.samples)


def composed_log_error(layers: tuple[LayerConstants, ...], bits: Floats) -> Floats:
    """Return log[(L·D·2^(−p) + κ·D²·2^(−2p))·∏_later L] for every layer and width, (layers, widths).

    >>> first = LayerConstants("a", 2.0, 8.0, 1.0, 0)
    >>> last = LayerConstants("b", 3.0, 18.0, 1.0, 1)
    >>> np.exp(composed_log_error((first, last), np.array([1.0]))).round(9).tolist()  # (1 + 2)·3 and 1.5 + 4.5
    [[9.0], [6.0]]
    """
    tiny = float(np.finfo(float).tiny)
    stretch = np.array([max(layer.lipschitz, tiny) for layer in layers])
    order = np.array([layer.order for layer in layers])
    later = (order[None, :] > order[:, None]) @ np.log(stretch)
    diameter = np.array([max(layer.diameter, tiny) for layer in layers])[:, None]
    linear = np.log(stretch[:, None] * diameter) - bits * np.log(2)
    kappa = np.array([max(layer.kappa, tiny) for layer in layers])[:, None]
    bent = np.log(kappa) + 2 * np.log(diameter) - 2 * bits * np.log(2)
    total: Floats = np.logaddexp(linear, bent) + later[:, None]
    return total


def caq_constants(subject: Subject) -> tuple[LayerConstants, ...]:
    """Return CAQ's constants of every site, from one run of the calibration set."""
    largest = [0.0] * len(subject.sites)
    first: dict[int, tuple[nn.Module, tuple[int, ...]]] = {}

    def look(place: int, module: nn.Module, seen: Tensor) -> None:
        first.setdefault(place, (module, tuple(seen.shape)))
        largest[place] = max(largest[place], _largest_norm(module, seen))

    visit_inputs(subject, Caq.name, look)
    found = []
    for place, site in enumerate(subject.sites):
        module, shape = first[place]
        stretch = _stretch(module, shape)
        order = list(first).index(place)
        found.append(LayerConstants(site.name, stretch, 2 * stretch**2, largest[place], order, shape[1:]))
    return tuple(found)


def _largest_norm(module: nn.Module, seen: Tensor) -> float:
    if isinstance(module, nn.Embedding):
        return 1.0
    rows = seen.flatten(1) if isinstance(module, nn.modules.conv._ConvNd) else seen.reshape(-1, seen.shape[-1])
    return float(torch.linalg.vector_norm(rows.double(), dim=1).max())


def _stretch(module: nn.Module, shape: tuple[int, ...]) -> float:
    """Return the norm of the linear operator: of the matrix where positions do not mix, of the convolution itself."""
    with torch.inference_mode(False):
        if isinstance(module, nn.modules.conv._ConvNd):
            return spectral_norm(module, shape[1:]).value
        assert isinstance(module, (nn.Linear, nn.Embedding)) or is_gpt2_conv1d(module)
        weight = module.weight
        assert isinstance(weight, Tensor)
        return spectral_norm(weight.detach()).value


PREDICTORS.register(Caq.name, Caq())
