"""Which ATen operations have an error functional, and with which constants?

A table from operation name to rule. Lipschitz constants are closed forms, exact or upper bounds in the 2-norm; norms
of layers are upper bounds of the real operators (see `operator_norms`). An operation that is not in the table raises
`NotCovered`, unless both networks hold the same single value at its inputs: then they do at its output.

Where the answer stops: layer norm and attention have no global Lipschitz constant worth using (for attention none
exists: Kim, Papamakarios, Mnih, arXiv 2006.04710). Their rules hold over the stated ball only.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from geoquant.bounds import flow_attention as flow_attention  # registers its rules
from geoquant.bounds.flow import Flow, joined
from geoquant.bounds.flow_table import RULES, affine, as_constant, constant_of, flow_of, growth, plain, rule, scaled
from geoquant.bounds.functional import ErrorFunctional
from geoquant.bounds.graph import Constant, NotCovered, call, operation
from geoquant.bounds.operator_norms import convolution_norm_bound, matrix_norm_bound, nonnegative_norm_bound, per_axis
from geoquant.geometry import lipschitz

_ACTIVATIONS: dict[str, nn.Module] = {
    "relu": nn.ReLU(),
    "relu6": nn.ReLU6(),
    "hardtanh": nn.Hardtanh(),
    "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(),
    "softplus": nn.Softplus(),
    "silu": nn.SiLU(),
    "mish": nn.Mish(),
    "gelu": nn.GELU(approximate="tanh"),  # the larger constant of GELU's two forms
    "hardswish": nn.Hardswish(),
    "hardsigmoid": nn.Hardsigmoid(),
}
# sup |f'| of each activation, and of operations that never move two values apart.
_CONSTANTS = {name: lipschitz(layer).value for name, layer in _ACTIVATIONS.items()} | dict.fromkeys(
    ("clamp", "clamp_min", "clamp_max", "abs", "neg", "sin", "cos"), 1.0
)
_REARRANGEMENTS = frozenset(
    {
        *("view", "reshape", "_unsafe_view", "flatten", "unflatten", "permute", "transpose", "t", "slice", "select"),
        *(
            "squeeze",
            "unsqueeze",
            "clone",
            "contiguous",
            "alias",
            "detach",
            "lift_fresh_copy",
            "pad",
            "constant_pad_nd",
        ),
        *("expand", "repeat", "split", "split_with_sizes", "chunk", "unbind"),
    }
)
_AVERAGES = frozenset(["mean", "sum", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d"])


def transform(node: fx.Node, args: list[Any], kwargs: dict[str, Any], label: str) -> tuple[Any, ErrorFunctional]:
    """Push flows through one operation; return its value and its own functional.

    Raises:
        NotCovered: no rule holds for it.
    """
    result = _result(node, args, kwargs, label)
    first = result[0] if isinstance(result, tuple) else result
    return result, _own(args, first, label)


def _result(node: fx.Node, args: list[Any], kwargs: dict[str, Any], label: str) -> Any:
    name = operation(node)
    if name == "getitem":
        return args[0][args[1]]
    if name == "dropout" and not args[2]:
        return args[0]
    leaves = _flatten([args, list(kwargs.values())])
    flows = [flow for flow in leaves if isinstance(flow, Flow)]
    if all(flow.still for flow in flows) and all(one.same for one in leaves if isinstance(one, Constant)):
        return _unchanged(node, args, kwargs, flows[0])
    if name in _CONSTANTS:
        return _lipschitz(node, args, kwargs, _CONSTANTS[name])
    if name in _REARRANGEMENTS:
        return _rearranged(node, args, kwargs)
    if name in _AVERAGES:
        return _averaged(node, args, kwargs)
    if name not in RULES:
        raise NotCovered(name)
    return RULES[name](label, *args, **kwargs)


def _own(args: list[Any], result: Flow, label: str) -> ErrorFunctional:
    """Read off what the operation did: how it amplifies, and the part that it added under its own name."""
    flows = [flow for flow in _flatten(args) if isinstance(flow, Flow)]
    before = math.fsum(flow.lipschitz for flow in flows)
    gain = result.lipschitz / before if before else 1.0
    inherited = math.fsum(flow.parts.get(label, 0.0) for flow in flows) * gain
    return ErrorFunctional(gain, max(result.parts.get(label, 0.0) - inherited, 0.0))


def _flatten(args: Any) -> list[Any]:
    if isinstance(args, (list, tuple)):
        return [leaf for one in args for leaf in _flatten(one)]
    return [args]


def _wide(value: Any) -> Any:
    return value.double() if torch.is_tensor(value) and value.is_floating_point() else value


def _unchanged(node: fx.Node, args: list[Any], kwargs: dict[str, Any], like: Flow) -> Any:
    value = call(node, plain(args), {name: plain(one) for name, one in kwargs.items()})
    if isinstance(value, (list, tuple)):
        return tuple(like.through(_wide(one), 0.0, 0.0) for one in value)
    return like.through(_wide(value), 0.0, 0.0)


def _lipschitz(node: fx.Node, args: list[Any], kwargs: dict[str, Any], constant: float) -> Flow:
    return flow_of(args[0]).through(call(node, plain(args), kwargs), constant, constant)


def _rearranged(node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    flow = flow_of(args[0])
    center = call(node, plain(args), kwargs)
    if isinstance(center, (list, tuple)):
        return tuple(flow.through(piece, 1.0, 1.0) for piece in center)
    stretch = growth(flow.center, center) if operation(node) in ("expand", "repeat") else 1.0
    return flow.through(center, stretch, stretch)


def _averaged(node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Flow:
    flow = flow_of(args[0])
    norm = nonnegative_norm_bound(lambda tensor: call(node, [tensor, *args[1:]], kwargs), flow.center)
    return flow.through(call(node, plain(args), kwargs), norm, norm)


@rule("linear")
def _linear(label: str, x: Any, weight: Any, bias: Constant | None = None) -> Flow:
    return affine(flow_of(x), lambda w, v: F.linear(v, w), constant_of(weight), bias, label, matrix_norm_bound)


@rule("conv1d", "conv2d", "conv3d")
def _conv(
    label: str,
    x: Any,
    weight: Any,
    bias: Constant | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Flow:
    axes = constant_of(weight).exact.dim() - 2
    convolve = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]

    def apply(w: Tensor, v: Tensor) -> Tensor:
        return convolve(v, w, None, stride, padding, dilation, groups)

    def norm(w: Tensor) -> float:
        return convolution_norm_bound(w, flow_of(x).center.shape[1:], stride, padding, dilation, groups)

    shaped = bias and Constant(*(side.reshape(-1, *[1] * axes) for side in (bias.exact, bias.stored)))
    return affine(flow_of(x), apply, weight, shaped, label, norm)


@rule("_native_batch_norm_legit_no_training")
def _native_batch_norm(label: str, *args: Any) -> tuple[Flow]:
    x, weight, bias, mean, variance, momentum, eps = args
    return (_batch_norm(label, x, weight, bias, mean, variance, False, momentum, eps),)


@rule("batch_norm")
def _batch_norm(
    label: str,
    x: Any,
    weight: Any,
    bias: Any,
    mean: Any,
    variance: Any,
    training: bool,
    momentum: float,
    eps: float,
    *_: Any,
) -> Flow:
    if training or mean is None:
        raise NotCovered("batch norm over the batch")
    shape = (1, -1, *[1] * (flow_of(x).center.dim() - 2))
    sides = []
    for side in ("exact", "stored"):
        scale = (getattr(weight, side) if weight else 1.0) / (getattr(variance, side) + eps).sqrt()
        shift = (getattr(bias, side) if bias else 0.0) - getattr(mean, side) * scale
        sides.append((scale.reshape(shape), shift.reshape(shape)))
    return scaled(x, Constant(sides[0][0], sides[1][0]), Constant(sides[0][1], sides[1][1]), label)


@rule("leaky_relu")
def _leaky_relu(label: str, x: Any, slope: float = 0.01) -> Flow:
    constant = max(1.0, abs(slope))
    return flow_of(x).through(F.leaky_relu(x.center, slope), constant, constant)


@rule("elu")
def _elu(label: str, x: Any, alpha: float = 1.0) -> Flow:
    constant = max(1.0, abs(alpha))
    return flow_of(x).through(F.elu(x.center, alpha), constant, constant)


@rule("add")
def _add(label: str, left: Any, right: Any, alpha: float = 1) -> Flow:
    return _sum(label, left, right, alpha)


@rule("sub")
def _sub(label: str, left: Any, right: Any, alpha: float = 1) -> Flow:
    return _sum(label, left, right, -alpha)


@rule("rsub")
def _rsub(label: str, left: Any, right: Any, alpha: float = 1) -> Flow:
    return _sum(label, right, left, -alpha)


def _sum(label: str, left: Any, right: Any, factor: float) -> Flow:
    center = plain(left) + factor * plain(right)
    flows, weights = [], []
    for one, size in ((left, 1.0), (right, abs(factor))):
        if isinstance(one, Flow):
            flows.append(one)
            weights.append(size * growth(one.center, center))
    result = joined(center, flows, weights)
    moved = [one for one in (left, right) if isinstance(one, Constant) and not one.same]
    if not moved:
        return result
    size = abs(factor) if moved[0] is right else 1.0
    local = size * float(torch.linalg.vector_norm((moved[0].stored - moved[0].exact).expand_as(center)))
    return result.through(center, 1.0, 1.0, label, local)


@rule("div")
def _div(label: str, left: Any, right: Any) -> Flow:
    divisor = as_constant(right)
    return scaled(flow_of(left), Constant(1 / divisor.exact, 1 / divisor.stored), None, label)


@rule("max_pool1d", "max_pool2d", "max_pool3d")
def _max_pool(label: str, x: Any, kernel: Any, stride: Any = (), *rest: Any) -> Flow:
    # An input feeds at most ⌈k/s⌉ windows per axis (k when dilated), and a maximum moves by at most its largest move.
    axes = flow_of(x).center.dim() - 2
    kernels, strides = per_axis(kernel, axes), per_axis(stride or kernel, axes)
    dilated = len(rest) > 1 and any(step != 1 for step in per_axis(rest[1], axes))
    overlap = math.prod(size if dilated else -(-size // step) for size, step in zip(kernels, strides, strict=True))
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[axes - 1]
    constant = math.sqrt(overlap)
    return flow_of(x).through(pool(x.center, kernel, stride or None, *rest), constant, constant)


@rule("cat")
def _cat(label: str, parts: list[Any], dim: int = 0) -> Flow:
    center = torch.cat([plain(part) for part in parts], dim)
    result = joined(center, [part for part in parts if isinstance(part, Flow)])
    changes = [part.stored - part.exact for part in parts if isinstance(part, Constant) and not part.same]
    local = math.fsum(float(torch.linalg.vector_norm(change)) for change in changes)
    return result.through(center, 1.0, 1.0, label, local)


@rule("to", "_to_copy", "type_as")
def _to(label: str, x: Any, *_: Any, **kwargs: Any) -> Flow:
    # Flows are float64 whatever the models run in; a cast to a shorter format would round in both networks.
    if any(one in (torch.float16, torch.bfloat16) for one in (*_, *kwargs.values())):
        raise NotCovered("a cast to half precision")
    return flow_of(x)


@rule("embedding")
def _embedding(label: str, weight: Any, indices: Any, *rest: Any) -> Flow:
    table, flow = constant_of(weight), flow_of(indices)
    if not flow.still:
        raise NotCovered("an embedding of uncertain indices")
    change = F.embedding(flow.center, table.stored - table.exact)
    center = F.embedding(flow.center, table.exact)
    return flow.through(center, 0.0, 0.0, label, float(torch.linalg.vector_norm(change)))
