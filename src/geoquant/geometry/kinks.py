"""How close does the data come to the kinks of a piecewise affine net, and what does a smoothed net look like?

Where no input lies on a kink the curvature of a ReLU net is zero, and at a kink there is none. What rounding
then meets is the chance of crossing: the share of pre-activations near a kink. Rectifiers are found where
they are called: ReLU, leaky ReLU, PReLU, ReLU6, hardtanh, clamp with numbers, abs; as modules or functions.
Ties of max-pooling and of maximum are kinks too, and are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from geoquant.errors import DataError, GeoquantError, ModelError
from geoquant.evaluation import Mean, WeightedMean
from geoquant.geometry.evidence import Estimate
from geoquant.models import Forward, batch_size, inference, predict


@dataclass(frozen=True)
class Kink:
    """Where a piecewise affine function of one number bends, and by how much its slope changes there."""

    at: float
    step: float | Tensor


Kinks = tuple[Kink, ...]
Rectify = Callable[[Tensor], Tensor]


def _relu(*_: Any, **__: Any) -> Kinks:
    return (Kink(0.0, 1.0),)


def _leaky(_: Tensor, negative_slope: float = 0.01, *__: Any, **___: Any) -> Kinks:
    return (Kink(0.0, 1.0 - negative_slope),)


def _prelu(x: Tensor, weight: Tensor) -> Kinks:
    shaped = weight if weight.numel() == 1 or x.dim() < 2 else weight.view(-1, *[1] * (x.dim() - 2))
    return (Kink(0.0, 1.0 - shaped),)


def _hardtanh(_: Tensor, min_val: float = -1.0, max_val: float = 1.0, *__: Any, **___: Any) -> Kinks:
    return (Kink(min_val, 1.0), Kink(max_val, -1.0))


def _clamp(_: Tensor, min: Any = None, max: Any = None, **__: Any) -> Kinks:
    bounds = ((min, 1.0), (max, -1.0))
    return tuple(Kink(float(bound), step) for bound, step in bounds if isinstance(bound, (int, float)))


def _clamp_min(_: Tensor, min: Any, **__: Any) -> Kinks:
    return _clamp(_, min)


def _clamp_max(_: Tensor, max: Any, **__: Any) -> Kinks:
    return _clamp(_, None, max)


def _abs(*_: Any, **__: Any) -> Kinks:
    return (Kink(0.0, 2.0),)


_RECTIFIERS: dict[Any, Callable[..., Kinks]] = {
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_), _relu),
    **dict.fromkeys((F.leaky_relu, F.leaky_relu_), _leaky),
    **dict.fromkeys((F.prelu, torch.prelu, Tensor.prelu), _prelu),
    **dict.fromkeys((F.relu6,), lambda *_, **__: _hardtanh(_[0], 0.0, 6.0)),
    **dict.fromkeys((F.hardtanh, F.hardtanh_), _hardtanh),
    **dict.fromkeys((torch.clamp, torch.clamp_, Tensor.clamp, Tensor.clamp_), _clamp),
    **dict.fromkeys((torch.clamp_min, torch.clamp_min_, Tensor.clamp_min, Tensor.clamp_min_), _clamp_min),
    **dict.fromkeys((torch.clamp_max, torch.clamp_max_, Tensor.clamp_max, Tensor.clamp_max_), _clamp_max),
    **dict.fromkeys((torch.abs, torch.abs_, Tensor.abs, Tensor.abs_, Tensor.__abs__), _abs),
}


class _Watching(TorchFunctionMode):
    """Hands every call of a rectifier to `meet`, which does the call."""

    def __init__(self, meet: Callable[[Rectify, Tensor, Kinks, bool], Tensor]) -> None:
        super().__init__()
        self._meet = meet

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        found = _RECTIFIERS.get(func)
        if found is None:
            return func(*args, **kwargs)
        x, rest = (args[0], args[1:]) if args else (kwargs["input"], ())
        kwargs.pop("input", None)
        kinks = found(x, *rest, **kwargs) if x.is_floating_point() else ()
        in_place = bool(kwargs.get("inplace")) or (func.__name__.endswith("_") and not func.__name__.endswith("__"))
        return self._meet(lambda tensor: func(tensor, *rest, **kwargs), x, kinks, in_place)


@contextmanager
def smoothed(beta: float) -> Iterator[None]:
    """Replace, while open, every rectifier by the softplus of sharpness `beta` at each of its kinks.

    A kink of step s at k turns from s·max(x − k, 0) into s·softplus_β(x − k), which differs from it by at most
    s·ln 2/β and has second derivative at most s·β/4.

    >>> with smoothed(2.0):
    ...     torch.relu(torch.zeros(1)).item() == F.softplus(torch.zeros(1), beta=2.0).item()
    True
    """
    if not beta > 0:
        raise GeoquantError(f"beta={beta} must be positive: the sharpness of the softplus that replaces a kink")

    def meet(rectify: Rectify, x: Tensor, kinks: Kinks, in_place: bool) -> Tensor:
        bends = [
            kink.step * (F.softplus(x - kink.at, beta=beta, threshold=40.0) - torch.relu(x - kink.at)) for kink in kinks
        ]
        result = rectify(x.clone() if in_place else x)
        for bend in bends:
            result = result + bend
        return x.copy_(result) if in_place else result

    with _Watching(meet):
        yield


@dataclass(frozen=True)
class KinkDensity:
    """The share of pre-activations that lie near a kink.

    Attributes:
        overall: over all rectifiers, each element counted once.
        layers: module path → the same for the rectifiers called there.
        distance: what near means, as a share of the root mean square of that call's pre-activations.
    """

    overall: Estimate
    layers: dict[str, Estimate]
    distance: float


def kink_density(
    model: nn.Module, batches: Sequence[Any], *, distance: float = 0.01, forward: Forward | None = None
) -> KinkDensity:
    """Return the share of pre-activations x with |x − kink| ≤ distance·rms(x), along the data.

    Args:
        model: any module; left as it was.
        batches: at least one.
        distance: share of the root mean square of the rectifier's input, taken over each call.
        forward: how to call the model.

    Raises:
        DataError: there is no batch.
        ModelError: the model calls no rectifier.

    >>> data = [torch.tensor([[-1.0, 0.001, 1.0, 2.0]])]
    >>> kink_density(nn.ReLU(), data).overall.value
    0.25
    """
    if not batches:
        raise DataError("there is no batch to measure on; expected at least one")
    overall = WeightedMean()
    layers: dict[str, WeightedMean] = {}
    with inference(model), _paths(model) as path:
        for batch in batches:
            samples = batch_size(batch)

            def meet(rectify: Rectify, x: Tensor, kinks: Kinks, _: bool, samples: int = samples) -> Tensor:
                shares = _near(x, kinks, distance, samples)
                weights = torch.full_like(shares, x.numel() / len(shares))
                overall.add(shares, weights)
                layers.setdefault(path[-1], WeightedMean()).add(shares, weights)
                return rectify(x)

            with _Watching(meet):
                predict(model, batch, forward)
    if not layers:
        raise ModelError("the model calls no rectifier (ReLU and its kin); it has no kinks to count")
    named = {name or "(model)": _estimate(mean.result()) for name, mean in layers.items()}
    return KinkDensity(_estimate(overall.result()), named, distance)


def _near(x: Tensor, kinks: Kinks, distance: float, samples: int) -> Tensor:
    """Return the share of elements near a kink, for each sample where the first axis counts samples."""
    radius = distance * x.double().square().mean().sqrt()
    near = torch.zeros_like(x, dtype=torch.bool)
    for kink in kinks:
        near |= (x - kink.at).abs() <= radius
    rows = len(x) if x.dim() > 0 and len(x) == samples else 1
    return near.reshape(rows, -1).double().mean(1)


def _estimate(mean: Mean) -> Estimate:
    return Estimate(mean.value, mean.stderr, samples=mean.samples, cost=1.0, method="share near a kink")


@contextmanager
def _paths(model: nn.Module) -> Iterator[list[str]]:
    """Keep the path of the module that is running on top of a list."""
    stack = [""]
    handles = []

    def leave(*_: Any) -> None:
        stack.pop()

    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: stack.append(name)))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()
