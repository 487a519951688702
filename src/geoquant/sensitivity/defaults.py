"""Which grids and predictors are measured when nobody says which?

Measured, not believed (docs/predictors.md): where batch norms are corrected after rounding, one layer's KL in a net
whose norms are not corrected speaks of a net that nobody deploys, and a gradient at the layers' outputs ranks plans far
better. Without batch norms there is nothing to correct, and the KL is taken at its word.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

# A scale of either sign costs no storage and lets each channel choose the side of its extra level.
DEFAULT_GRIDS = tuple(f"int{bits}:mse-signed" for bits in range(2, 9))
# With its scales a grid of two bits takes more than two: budgets near there need these as well.
NARROW_GRIDS = ("binary", "ternary")
CHEAP = "weight_error"


def default_predictors(model: nn.Module, activations: bool = False) -> tuple[str, ...]:
    """Return the predictors of a profile, the one that plans are made with first.

    Args:
        model: whose layers are to be scored.
        activations: whether their inputs are scored too; then damages must be in nats, to be added up.

    >>> default_predictors(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
    ('modelopt_gradient', 'weight_error')
    >>> default_predictors(nn.Sequential(nn.Linear(3, 8)))
    ('one_layer_kl', 'weight_error')
    """
    modules = list(model.modules())
    corrected = any(isinstance(module, _BatchNorm) for module in modules)
    plain = not any(isinstance(module, nn.MultiheadAttention) for module in modules)
    return ("modelopt_gradient" if corrected and plain and not activations else "one_layer_kl", CHEAP)
