"""By how much can a layer enlarge a difference of inputs, in Euclidean norm?

`lipschitz` answers with a closed form where one exists: the exact constant, or an upper bound that says so.
Normalisations have a constant only on a domain that stays away from zero variance. Dot-product attention has
none on unbounded inputs (Kim et al., arXiv 2006.04710); for it, as for any other map, `lipschitz_sampled`
gives the largest Jacobian norm found at given points, which is a lower estimate and never a bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from geoquant.errors import ModelError
from geoquant.geometry.evidence import Estimate
from geoquant.geometry.lanczos import dominant
from geoquant.geometry.operators import CONVOLUTIONS, TRANSPOSED, spectral_norm
from geoquant.geometry.pointwise import Map, jacobian_gram, points_of
from geoquant.geometry.probes import gaussian
from geoquant.models import evaluating

Formula = Callable[[Any], Estimate]

# sup |f'| of activations, attained or approached; derived by setting f'' to zero, checked on a fine grid in the tests.
_SLOPES: dict[type[nn.Module], float] = {
    nn.Identity: 1.0,
    nn.ReLU: 1.0,
    nn.ReLU6: 1.0,
    nn.Hardtanh: 1.0,
    nn.Tanh: 1.0,
    nn.Sigmoid: 0.25,
    nn.Softplus: 1.0,
    nn.LogSigmoid: 1.0,
    nn.Softsign: 1.0,
    nn.Tanhshrink: 1.0,
    nn.Hardshrink: math.inf,
    nn.Softshrink: 1.0,
    nn.Hardsigmoid: 1 / 6,
    nn.Hardswish: 1.5,
    nn.SiLU: 1.099839320128867,
    nn.Mish: 1.088498161251728,
    nn.Dropout: 1.0,
    nn.Flatten: 1.0,
    nn.Unflatten: 1.0,
    nn.PixelShuffle: 1.0,
    nn.PixelUnshuffle: 1.0,
}

_FORMULAS: dict[type[nn.Module], Formula] = {}


def register_lipschitz(layer: type[nn.Module], formula: Formula) -> None:
    """Teach `lipschitz` a layer type; subclasses inherit it unless registered themselves.

    Args:
        layer: the class.
        formula: maps an instance to an `Estimate` of its Lipschitz constant.

    >>> class Halve(nn.Module):
    ...     pass
    >>> register_lipschitz(Halve, lambda layer: Estimate.known(0.5, "halving"))
    >>> lipschitz(Halve()).value
    0.5
    """
    _FORMULAS[layer] = formula


def lipschitz(
    layer: nn.Module, input_shape: Sequence[int] | None = None, *, smallest_variance: float = 0.0
) -> Estimate:
    """Return the Lipschitz constant of a layer, or an upper bound of it, in Euclidean norm.

    Args:
        layer: in eval mode as far as dropout and batch norm are concerned.
        input_shape: without the batch axis; needed by convolutions, average pooling and what contains them.
        smallest_variance: for LayerNorm, GroupNorm, InstanceNorm and RMSNorm: the domain is inputs whose
            variance (mean square) is at least this.

    Raises:
        ModelError: there is no closed form (attention, user layers): use `lipschitz_sampled`.

    >>> lipschitz(nn.Softmax(-1)).value, lipschitz(nn.Sigmoid()).value
    (0.5, 0.25)
    >>> print(lipschitz(nn.LayerNorm(8), smallest_variance=0.25))
    1.99996 ± 0 left (upper bound; on inputs of variance at least 0.25)
    """
    for kind in type(layer).__mro__:
        if kind in _FORMULAS:
            return _FORMULAS[kind](layer)
    if isinstance(layer, nn.Sequential):
        return _product(layer, input_shape, smallest_variance)
    if isinstance(layer, _NORMS):
        return _normalisation(layer, smallest_variance)
    if isinstance(layer, (nn.Linear, *CONVOLUTIONS, *TRANSPOSED, *_AVERAGES)):
        return spectral_norm(layer, input_shape)
    for kind in type(layer).__mro__:
        if kind in _SLOPES:
            return Estimate.known(_SLOPES[kind], "closed form")
    raise ModelError(
        f"no closed form is known for the Lipschitz constant of {type(layer).__name__}; use lipschitz_sampled for a "
        "lower estimate on data, or register_lipschitz"
    )


_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.RMSNorm)
_AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_BATCH_NORMS: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_MAX_POOLS: tuple[type[nn.Module], ...] = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)


def _largest(weight: Tensor | None) -> float:
    return 1.0 if weight is None else float(weight.detach().double().abs().max())


def _normalisation(layer: Any, smallest_variance: float) -> Estimate:
    """Bound by max|γ|/√(v + ε): x ↦ (x − mean)/√(var + ε) has the Jacobian of a contraction over √(var + ε)."""
    eps = torch.finfo(torch.float32).eps if layer.eps is None else layer.eps
    value = _largest(layer.weight) / math.sqrt(smallest_variance + eps)
    return Estimate(value, method="upper bound", note=f"on inputs of variance at least {smallest_variance:g}")


def _batch_norm(layer: Any) -> Estimate:
    if layer.running_var is None:
        raise ModelError("batch norm without running statistics couples samples: it is no map of one sample")
    scale = 1.0 if layer.weight is None else layer.weight.detach().double().abs()
    return Estimate.known(float((scale / (layer.running_var.double() + layer.eps).sqrt()).max()), "max|γ|/√(var + ε)")


def _max_pool(layer: Any) -> Estimate:
    """An input may be the maximum of every window that holds it: √(windows per input)."""
    windows = math.prod(-(-kernel // stride) for kernel, stride in _per_axis(layer, (layer.kernel_size, layer.stride)))
    if windows == 1:
        return Estimate.known(1.0, "closed form")
    return Estimate(math.sqrt(windows), method="upper bound", note=f"an input lies in up to {windows} windows")


def _per_axis(layer: nn.Module, settings: Sequence[Any]) -> list[tuple[Any, ...]]:
    axes = int(type(layer).__name__[-2])
    return list(zip(*(value if isinstance(value, tuple) else (value,) * axes for value in settings), strict=True))


def _gelu(layer: nn.GELU) -> Estimate:
    return Estimate.known(1.128904145185155 if layer.approximate == "none" else 1.1289930686587717, "closed form")


register_lipschitz(nn.GELU, _gelu)
register_lipschitz(nn.LeakyReLU, lambda layer: Estimate.known(max(1.0, abs(layer.negative_slope)), "closed form"))
register_lipschitz(nn.PReLU, lambda layer: Estimate.known(max(1.0, _largest(layer.weight)), "closed form"))
register_lipschitz(nn.ELU, lambda layer: Estimate.known(max(1.0, abs(layer.alpha)), "closed form"))
register_lipschitz(nn.CELU, lambda layer: Estimate.known(1.0, "closed form"))
register_lipschitz(nn.SELU, lambda layer: Estimate.known(1.0507009873554805 * 1.6732632423543772, "closed form"))
register_lipschitz(nn.Softmax, lambda layer: Estimate.known(0.5, "closed form"))
for _formula, _kinds in ((_batch_norm, _BATCH_NORMS), (_max_pool, _MAX_POOLS)):
    for _kind in _kinds:
        register_lipschitz(_kind, _formula)


def _product(layers: nn.Sequential, input_shape: Sequence[int] | None, smallest_variance: float) -> Estimate:
    value, shape = 1.0, input_shape
    for layer in layers:
        value *= lipschitz(layer, shape, smallest_variance=smallest_variance).value
        if shape is not None:
            with torch.no_grad(), evaluating(layer):
                example = next(layer.parameters(), torch.zeros(()))
                shape = tuple(layer(torch.zeros(1, *shape).to(example)).shape[1:])
    return Estimate(value, method="upper bound", note=f"product over {len(layers)} layers")


def lipschitz_sampled(
    function: Map, points: Tensor, *, tolerance: float = 1e-3, max_steps: int = 200, seed: int = 0
) -> Estimate:
    """Return the largest Jacobian norm at given points: a lower estimate of the Lipschitz constant there.

    Args:
        function: maps (points, ...) to (points, ...), point by point; a module is put in eval mode.
        points: (points, *input shape), floating point.
        tolerance: residual of JᵀJ to reach, relative.
        max_steps: applications of JᵀJ at most.
        seed: of the start.

    >>> round(lipschitz_sampled(torch.sigmoid, torch.tensor([[2.0], [0.0]])).value, 4)
    0.25
    """
    with points_of(function, points) as (x, y):
        start = gaussian([x.flatten(1)], seed)[0]
        found = dominant(jacobian_gram(x, y), start, tolerance=tolerance, max_steps=max_steps)
    sigmas = found.values[:, 0].clamp(min=0).sqrt()
    place = int(sigmas.argmax())
    value = float(sigmas[place])
    return Estimate(
        value,
        samples=len(points),
        cost=3.0 * found.steps,
        residual=float(found.residuals[place, 0]) / value if value else 0.0,
        method="largest Jacobian norm",
        note="a lower estimate",
    )
