"""How far is a map from affine? κ = ½·sup over unit h of ‖D²f(h, h)‖.

Exact for functions whose constant is known; an upper bound for a chain of such functions; for any other
smooth map the largest value found at given points by Lanczos on Hessian-vector products, which is a lower
estimate. Piecewise affine nets have κ = 0 almost everywhere and no second derivative at their kinks: they
are reported so (`network_curvature`), with the share of pre-activations near a kink and the value of a
smoothed net beside it, instead of an invented number. Norms and condition numbers of weights, and the
Hessian of ‖f‖², have been called curvature; they are other quantities, under names of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from geoquant.errors import DataError, GeoquantError, ModelError
from geoquant.geometry.affine import structure_of
from geoquant.geometry.evidence import Estimate
from geoquant.geometry.kinks import KinkDensity, kink_density, smoothed
from geoquant.geometry.lanczos import dominant
from geoquant.geometry.lipschitz import lipschitz
from geoquant.geometry.pointwise import Map, hessian_rows, points_of, second_directional
from geoquant.geometry.probes import gaussian
from geoquant.models import Forward, predict

# κ of known functions. Element by element ½·sup|f''|: of the sigmoid 1/(6√3), of tanh 4/(3√3), of GELU 2φ(0), of SiLU
# ½, of softplus ¼; softmax by its second derivative s∘((h − h̄)² − Var_s h); log-sum-exp by ½·sup Var_s h.
KNOWN_CURVATURES: dict[str, float] = {
    "affine": 0.0,
    "sigmoid": 1 / (12 * math.sqrt(3)),
    "tanh": 2 / (3 * math.sqrt(3)),
    "gelu": 1 / math.sqrt(2 * math.pi),
    "silu": 0.25,
    "softplus": 0.125,
    "mish": 0.32210231861848625,
    "softsign": 1.0,
    "softmax": 1 / (3 * math.sqrt(6)),
    "log-sum-exp": 0.25,
}

Formula = Callable[[Any], float]
_FORMULAS: dict[type[nn.Module], tuple[str, Formula]] = {}


def register_curvature(layer: type[nn.Module], formula: Formula, name: str = "registered formula") -> None:
    """Teach `curvature` a layer type; subclasses inherit it unless registered themselves.

    Args:
        layer: the class.
        formula: maps an instance to its exact κ.
        name: shown as the method.

    >>> class Square(nn.Module):
    ...     def forward(self, x):
    ...         return x**2
    >>> register_curvature(Square, lambda layer: 1.0, "x²")
    >>> print(curvature(Square()))
    1 (exact: x²)
    """
    _FORMULAS[layer] = (name, formula)


def _register(name: str, *layers: type[nn.Module]) -> None:
    for layer in layers:
        register_curvature(layer, lambda _: KNOWN_CURVATURES[name], name)


_register("affine", nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d)
_register("affine", nn.ConvTranspose3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.Identity, nn.Flatten, nn.Dropout)
_register("affine", nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.Unflatten, nn.PixelShuffle)
_register("affine", nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_register("sigmoid", nn.Sigmoid)
_register("tanh", nn.Tanh, nn.Tanhshrink)
_register("gelu", nn.GELU)
_register("silu", nn.SiLU)
_register("mish", nn.Mish)
_register("softsign", nn.Softsign)
_register("softmax", nn.Softmax)
_register("softplus", nn.LogSigmoid)
register_curvature(nn.Softplus, lambda layer: layer.beta * KNOWN_CURVATURES["softplus"], "softplus")

_KINKED = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ReLU6, nn.Hardtanh, nn.Hardsigmoid, nn.MaxPool1d, nn.MaxPool2d)
AT_KINKS = "zero almost everywhere, no second derivative at the kinks"


def curvature(layer: nn.Module, input_shape: Sequence[int] | None = None) -> Estimate:
    """Return κ of a layer from its formula, or an upper bound for a Sequential of such layers.

    Args:
        layer: in eval mode as far as dropout and batch norm are concerned.
        input_shape: without the batch axis, where Lipschitz constants inside a Sequential need it.

    Raises:
        ModelError: there is no formula; use `curvature_sampled`, `network_curvature` or `register_curvature`.

    >>> curvature(nn.Linear(3, 3)).value, round(curvature(nn.Softmax(-1)).value, 5)
    (0.0, 0.13608)
    """
    if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is None:
        raise ModelError("batch norm without running statistics is no map of one sample; it has no formula")
    for kind in type(layer).__mro__:
        if kind in _FORMULAS:
            name, formula = _FORMULAS[kind]
            return Estimate.known(formula(layer), name)
    if isinstance(layer, _KINKED):
        return Estimate.known(0.0, "piecewise affine", note=AT_KINKS)
    if isinstance(layer, nn.Sequential):
        return _chained(layer, input_shape)
    raise ModelError(
        f"no formula is known for the curvature of {type(layer).__name__}; use curvature_sampled for a lower estimate "
        "on data, or register_curvature"
    )


def compose_curvature(inner: float, inner_lipschitz: float, outer: float, outer_lipschitz: float) -> float:
    """Bound the curvature of g∘f: κ(g∘f) ≤ κ_g·L_f² + L_g·κ_f.

    >>> compose_curvature(inner=0.0, inner_lipschitz=2.0, outer=0.25, outer_lipschitz=1.0)
    1.0
    """
    return outer * inner_lipschitz**2 + outer_lipschitz * inner


def _chained(layers: nn.Sequential, input_shape: Sequence[int] | None) -> Estimate:
    value, stretch, kinked, shape = 0.0, 1.0, False, input_shape
    for layer in layers:
        found = curvature(layer, shape)
        kinked |= found.note == AT_KINKS
        slope = lipschitz(layer, shape).value
        value, stretch = compose_curvature(value, stretch, found.value, slope), stretch * slope
        if shape is not None:
            shape = tuple(_output_shape(layer, shape))
    if value == 0:
        return Estimate.known(0.0, "piecewise affine" if kinked else "affine", note=AT_KINKS if kinked else "")
    return Estimate(value, method="upper bound", note="composition of formulas" + (f"; {AT_KINKS}" if kinked else ""))


def _output_shape(layer: nn.Module, shape: Sequence[int]) -> Sequence[int]:
    with points_of(layer, torch.zeros(1, *shape).to(next(layer.parameters(), torch.zeros(())))) as (x, _):
        return tuple(layer(x).shape[1:])


def quadratic_curvature(matrix: Tensor) -> Estimate:
    """Return κ of x ↦ ½xᵀAx, which is ½‖A‖₂ of the symmetric part of A.

    >>> quadratic_curvature(torch.diag(torch.tensor([3.0, -8.0]))).value
    4.0
    """
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
        raise GeoquantError(f"a quadratic form needs a square matrix, got shape {tuple(matrix.shape)}")
    symmetric = (matrix + matrix.T).double() / 2
    return Estimate.known(float(torch.linalg.eigvalsh(symmetric).abs().max()) / 2, "½‖A‖₂")


def curvature_sampled(
    function: Map,
    points: Tensor,
    *,
    starts: int = 2,
    rounds: int = 10,
    tolerance: float = 1e-3,
    max_steps: int = 100,
    seed: int = 0,
) -> Estimate:
    """Return the largest ½‖D²f(h, h)‖ found at given points: a lower estimate of κ.

    For a fixed output direction u, the best h is the leading eigenvector of ∇²(u·f), found by Lanczos; for a
    fixed h the best u is D²f(h, h) itself. The two alternate, from several random u. A map to one number needs no
    alternation and its value at each point is exact up to the residual.

    Args:
        function: maps (points, ...) to (points, ...), point by point, twice differentiable there.
        points: (points, *input shape), floating point.
        starts: random output directions to start from.
        rounds: alternations at most.
        tolerance: relative residual of Lanczos, and relative gain below which a round is the last.
        max_steps: Hessian-vector products for one eigenvector at most.
        seed: of the starts.

    >>> value = curvature_sampled(lambda x: x.softmax(-1), torch.tensor([[1.3170, 0.0]]).double()).value
    >>> round(value, 4)  # at its worst point softmax reaches 1/(3√6)
    0.1361
    """
    with points_of(function, points) as (x, y):
        scalar = y.shape[1] == 1
        draws = [
            torch.ones_like(y) if scalar else gaussian([y], seed, start)[0] for start in range(1 if scalar else starts)
        ]
        found = [_alternate(x, y, direction, rounds, tolerance, max_steps, seed) for direction in draws]
    best = max(found, key=lambda climb: climb.value)
    return Estimate(
        best.value,
        samples=len(points),
        cost=sum(climb.steps for climb in found) * 6.0,
        residual=best.residual,
        method="lanczos on Hessian-vector products",
        note="largest at the given points, a lower estimate",
    )


@dataclass(frozen=True)
class _Climb:
    value: float
    residual: float
    steps: int


def _alternate(
    x: Tensor, y: Tensor, direction: Tensor, rounds: int, tolerance: float, max_steps: int, seed: int
) -> _Climb:
    start = gaussian([x.flatten(1)], seed, 1)[0]
    best, steps = torch.zeros(len(x), dtype=torch.float64), 0
    unit = torch.nn.functional.normalize(direction.flatten(1), dim=1)
    residuals = torch.zeros_like(best)
    for _ in range(rounds):
        found = dominant(hessian_rows((unit * y).sum(), x), start, tolerance=tolerance, max_steps=max_steps)
        steps += found.steps
        start = found.vectors[:, 0]
        bend = second_directional(x, y, start).detach()
        sizes = bend.norm(dim=1).double().cpu()
        gain = float((sizes - best).max())
        residuals = torch.where(sizes > best, found.residuals[:, 0], residuals)
        best = torch.maximum(best, sizes)
        if gain <= tolerance * float(best.max()) or y.shape[1] == 1:
            break
        unit = torch.where(bend.norm(dim=1, keepdim=True) > 0, torch.nn.functional.normalize(bend, dim=1), unit)
    place = int(best.argmax())
    return _Climb(float(best[place]) / 2, float(residuals[place]) / 2, steps)


@dataclass(frozen=True)
class NetworkCurvature:
    """What can truly be said of a network's curvature in its input.

    Attributes:
        value: exactly 0 for a piecewise affine net (almost everywhere), else sampled on the data.
        kinks: how close the data comes to the kinks; None for a net without rectifiers.
        smoothed: the sampled value with every rectifier replaced by a softplus; None without rectifiers.
        beta: sharpness of that softplus; `smoothed` grows with it without bound.
    """

    value: Estimate
    kinks: KinkDensity | None
    smoothed: Estimate | None
    beta: float


def network_curvature(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    beta: float = 10.0,
    distance: float = 0.01,
    points: int = 16,
    forward: Forward | None = None,
    seed: int = 0,
) -> NetworkCurvature:
    """Return κ of a network from its real-valued input to its outputs, with what stands beside it.

    Args:
        model: any module whose batches hold a floating-point input tensor.
        batches: tensors or (inputs, targets) pairs.
        beta: sharpness of the softplus in the smoothed net.
        distance: see `kink_density`.
        points: samples of the first batch at which sampled values are taken.
        forward: how to call the model on a tensor.
        seed: of the starts.

    >>> net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    >>> network_curvature(net, [torch.randn(8, 2)]).value.value
    0.0
    """
    if not batches:
        raise DataError("there is no batch to measure on; expected at least one")
    first = batches[0][0] if isinstance(batches[0], (tuple, list)) else batches[0]
    if not isinstance(first, Tensor) or not first.is_floating_point():
        raise DataError("curvature in the input needs batches with one floating-point input tensor")
    x = first[:points]

    def sampled() -> Estimate:
        return curvature_sampled(_InEval(model, forward), x, starts=1, seed=seed)

    with points_of(_InEval(model, forward), x) as (leaf, outputs):
        affine = structure_of(outputs, [leaf]).affine[0]
    try:
        kinks = kink_density(model, batches, distance=distance, forward=forward)
    except ModelError:
        kinks = None
    note = AT_KINKS if kinks else ""
    value = Estimate.known(0.0, "piecewise affine" if kinks else "affine", note=note) if affine else sampled()
    if kinks is None:
        return NetworkCurvature(value, None, None, beta)
    with smoothed(beta):
        return NetworkCurvature(value, kinks, sampled(), beta)


class _InEval(nn.Module):
    """The model as a map of one tensor, called as the caller calls it."""

    def __init__(self, model: nn.Module, forward: Forward | None) -> None:
        super().__init__()
        self.inner, self._call = model, forward

    def forward(self, x: Tensor) -> Tensor:
        return predict(self.inner, x, self._call)
