"""Which ATen operations can carry a pair of forms, and how?

A table from operation name to rule. An operation that is not in the table, or is there in a form that its rule does
not cover (a product of two activations, a pool with ceil mode), raises `NotCovered`; the caller names it in the result.

Where the answer stops: piecewise linear networks. Softmax, layer norm, GELU and attention are not in the table.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from geoquant.bounds.graph import Constant, NotCovered, call, operation
from geoquant.bounds.operator_norms import convolution_norm_bound, matrix_norm_bound
from geoquant.bounds.outward import raised
from geoquant.bounds.pair_affine import AffineMap, Context, affine, average
from geoquant.bounds.relaxation import maximum, negated, relu
from geoquant.bounds.zonotope import Pair, add, loosened

Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule under operation names."""

    def keep(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return keep


def transform(node: fx.Node, args: list[Any], kwargs: dict[str, Any], context: Context) -> Any:
    """Push pairs through one operation.

    Raises:
        NotCovered: no rule holds for it.
    """
    name = operation(node)
    if name in REARRANGEMENTS:
        return _rearranged(node, args, kwargs)
    if name not in RULES:
        raise NotCovered(name)
    return RULES[name](context, *args, **kwargs)


# Operations that move elements about and compute nothing. `expand` and `repeat` copy, which forms allow.
REARRANGEMENTS = frozenset(
    [
        "view",
        "reshape",
        "_unsafe_view",
        "flatten",
        "unflatten",
        "permute",
        "transpose",
        "t",
        "slice",
        "select",
        "squeeze",
        "unsqueeze",
        "expand",
        "repeat",
        "clone",
        "contiguous",
        "alias",
        "detach",
        "dropout",
        "lift_fresh_copy",
        "getitem",
    ]
)


def _rearranged(node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    if operation(node) == "getitem":
        return args[0][args[1]]
    if operation(node) == "dropout" and args[2]:
        raise NotCovered("dropout in training")
    before, after = _pair(args[0]).value.center.numel(), node.meta["val"].numel()
    copies = max(after / before, 1.0) if operation(node) in ("expand", "repeat") else 1.0
    return args[0].map(lambda tensor: call(node, [tensor, *args[1:]], kwargs), math.sqrt(copies) * (1 + 1e-14))


def _same(value: Any) -> Any:
    """Return a plain number or tensor that both models share."""
    if isinstance(value, Constant):
        if not value.same:
            raise NotCovered("a constant that differs")
        return value.exact
    return value


def _pair(value: Any) -> Pair:
    if not isinstance(value, Pair):
        raise NotCovered("a constant where an activation was expected")
    return value


@rule("linear")
def _linear(context: Context, x: Pair, weight: Constant, bias: Constant | None = None) -> Pair:
    terms = _constant(weight).exact.shape[1]
    layer = AffineMap(lambda w, v: F.linear(v, w), weight, bias, terms, matrix_norm_bound, keep=True)
    return affine(_pair(x), layer, context)


def _constant(value: Any) -> Constant:
    if not isinstance(value, Constant):
        raise NotCovered("an activation used as a weight")
    return value


@rule("conv1d", "conv2d", "conv3d")
def _conv(
    context: Context,
    x: Pair,
    weight: Constant,
    bias: Constant | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Pair:
    kernel = _constant(weight).exact
    convolve = (F.conv1d, F.conv2d, F.conv3d)[kernel.dim() - 3]

    def apply(w: Tensor, v: Tensor) -> Tensor:
        return convolve(v, w, None, stride, padding, dilation, groups)

    shaped = bias and _each(bias, lambda one: one.reshape(-1, *[1] * (kernel.dim() - 2)))

    def norm(w: Tensor) -> float:
        return convolution_norm_bound(w, _pair(x).value.center.shape[1:], stride, padding, dilation, groups)

    return affine(_pair(x), AffineMap(apply, weight, shaped, kernel[0].numel(), norm, keep=True), context)


def _each(constant: Constant, function: Callable[[Tensor], Tensor]) -> Constant:
    return Constant(function(constant.exact), function(constant.stored))


@rule("_native_batch_norm_legit_no_training")
def _native_batch_norm(context: Context, *args: Any) -> tuple[Pair]:
    x, weight, bias, mean, variance, momentum, eps = args
    return (_batch_norm(context, x, weight, bias, mean, variance, False, momentum, eps),)


@rule("batch_norm")
def _batch_norm(
    context: Context,
    x: Pair,
    weight: Constant | None,
    bias: Constant | None,
    mean: Constant | None,
    variance: Constant | None,
    training: bool,
    momentum: float,
    eps: float,
    *rest: Any,
) -> Pair:
    if training or mean is None or variance is None:
        raise NotCovered("batch norm over the batch")
    one, zero = Constant(*[torch.ones_like(mean.exact)] * 2), Constant(*[torch.zeros_like(mean.exact)] * 2)
    shape = (-1, *[1] * (x.value.center.dim() - 2))

    def folded(side: str) -> tuple[Tensor, Tensor, Tensor]:
        scale = getattr(weight or one, side) / (getattr(variance, side) + eps).sqrt()
        moved, offset = getattr(mean, side) * scale, getattr(bias or zero, side)
        # The shift may cancel, but neither its rounding nor that of the networks' own does.
        return scale.reshape(shape), (offset - moved).reshape(shape), (offset.abs() + moved.abs()).reshape(shape)

    scale, shift, volume = (Constant(*sides) for sides in zip(folded("exact"), folded("stored"), strict=True))
    layer = AffineMap(lambda w, v: v * w, scale, shift, 8, _largest, uncertain=True, volume=volume)
    return affine(x, layer, context)


@rule("relu")
def _relu(context: Context, x: Pair) -> Pair:
    return relu(x, context)


@rule("leaky_relu")
def _leaky_relu(context: Context, x: Pair, slope: float = 0.01) -> Pair:
    return add(_times(x, slope, context), _times(relu(x, context), 1 - slope, context))


@rule("hardtanh", "relu6")
def _hardtanh(context: Context, x: Pair, low: float = 0.0, high: float = 6.0) -> Pair:
    # clip(x, a, b) = a + relu(x − a) − relu(x − b)
    above = relu(_shifted(x, -high, context), context)
    return _shifted(add(relu(_shifted(x, -low, context), context), negated(above)), low, context)


def _largest(weight: Tensor) -> float:
    return float(weight.abs().max())


def _times(x: Pair, factor: Any, context: Context) -> Pair:
    both = factor if isinstance(factor, Constant) else Constant(*[torch.as_tensor(factor, dtype=torch.float64)] * 2)
    _check_shape(x, both.exact)
    return affine(x, AffineMap(lambda w, v: v * w, both, None, 2, _largest, uncertain=True), context)


def _shifted(x: Pair, offset: Any, context: Context) -> Pair:
    both = offset if isinstance(offset, Constant) else Constant(*[torch.as_tensor(offset, dtype=torch.float64)] * 2)
    _check_shape(x, both.exact)
    one = Constant(*[torch.ones((), dtype=torch.float64)] * 2)
    return affine(x, AffineMap(lambda w, v: v * w, one, both, 2, _largest), context)


def _check_shape(x: Pair, constant: Tensor) -> None:
    center = x.value.center
    if (center * constant).shape != center.shape:
        raise NotCovered("a constant larger than the activation")


@rule("add")
def _add(context: Context, left: Any, right: Any, alpha: float = 1) -> Pair:
    return _sum(alpha, context, left, right)


@rule("sub")
def _sub(context: Context, left: Any, right: Any, alpha: float = 1) -> Pair:
    return _sum(-alpha, context, left, right)


@rule("rsub")
def _rsub(context: Context, left: Any, right: Any, alpha: float = 1) -> Pair:
    if isinstance(left, Pair) and not isinstance(right, Pair):
        return _shifted(_times(left, -alpha, context), right, context)
    return _sum(-alpha, context, right, left)


def _sum(factor: float, context: Context, left: Any, right: Any) -> Pair:
    if isinstance(left, Pair) and isinstance(right, Pair):
        if left.value.center.shape != right.value.center.shape:
            raise NotCovered("a sum that broadcasts")
        both = add(left, right if factor == 1 else _times(right, factor, context))
        return _rounded(both, context)
    if isinstance(left, Pair):
        return _shifted(left, _scaled(right, factor), context)
    return _shifted(_times(right, factor, context), left, context)


def _scaled(value: Any, factor: float) -> Any:
    return _each(value, lambda one: one * factor) if isinstance(value, Constant) else value * factor


def _rounded(pair: Pair, context: Context) -> Pair:
    """Add what one addition in each network can lose."""
    volume = pair.value.magnitude()
    own, both = context.evaluation(volume, 1), context.evaluation(raised(volume + pair.error.magnitude(), 1), 1)
    return Pair(loosened(pair.value, own), loosened(pair.error, own + both), pair.names)


@rule("mul")
def _mul(context: Context, left: Any, right: Any) -> Pair:
    if isinstance(left, Pair) and isinstance(right, Pair):
        raise NotCovered("a product of activations")
    pair, factor = (left, right) if isinstance(left, Pair) else (right, left)
    return _times(pair, factor, context)


@rule("div")
def _div(context: Context, left: Any, right: Any) -> Pair:
    if not isinstance(left, Pair) or isinstance(right, Pair):
        raise NotCovered("a division by an activation")
    # One more rounding than a product; the two terms that `_times` allows cover it.
    return _times(left, _each(right, torch.reciprocal) if isinstance(right, Constant) else 1 / right, context)


@rule("neg")
def _neg(context: Context, x: Pair) -> Pair:
    return negated(x)


@rule("mean")
def _mean(context: Context, x: Pair, dim: Any = None, keepdim: bool = False) -> Pair:
    return _reduced(torch.mean, context, x, dim, keepdim)


@rule("sum")
def _total(context: Context, x: Pair, dim: Any = None, keepdim: bool = False) -> Pair:
    return _reduced(torch.sum, context, x, dim, keepdim)


def _reduced(reduce: Callable[..., Tensor], context: Context, x: Pair, dim: Any, keepdim: bool) -> Pair:
    dims = list(range(x.value.center.dim())) if dim is None else ([dim] if isinstance(dim, int) else list(dim))
    terms = math.prod(x.value.center.shape[one] for one in dims)
    return average(x, lambda tensor: reduce(tensor, dims, keepdim), terms + 1, context)


@rule("avg_pool2d")
def _avg_pool2d(context: Context, x: Pair, kernel: Any, *rest: Any) -> Pair:
    size = math.prod(kernel) if not isinstance(kernel, int) else kernel**2
    return average(x, lambda tensor: F.avg_pool2d(tensor, kernel, *rest), size + 1, context)


@rule("adaptive_avg_pool2d")
def _adaptive_avg_pool2d(context: Context, x: Pair, size: Any) -> Pair:
    terms = math.prod(x.value.center.shape[-2:])
    return average(x, lambda tensor: F.adaptive_avg_pool2d(tensor, size), terms + 1, context)


@rule("pad", "constant_pad_nd")
def _pad(context: Context, x: Pair, widths: list[int], *rest: Any) -> Pair:
    mode, value = ("constant", rest[0]) if rest and not isinstance(rest[0], str) else (*rest, "constant", None)[:2]
    if mode != "constant" or value not in (None, 0, 0.0):
        raise NotCovered("a pad with other values than zero")
    return x.map(lambda tensor: F.pad(tensor, widths))


@rule("cat")
def _cat(context: Context, parts: list[Any], dim: int = 0) -> Pair:
    pairs = [_pair(part) for part in parts]
    dim %= pairs[0].value.center.dim()
    sizes = [pair.value.center.shape[dim] for pair in pairs]
    behind = pairs[0].value.center.dim() - 1 - dim

    def placed(index: int) -> Pair:
        widths = [0, 0] * behind + [sum(sizes[:index]), sum(sizes[index + 1 :])]
        return pairs[index].map(lambda tensor: F.pad(tensor, widths))

    return functools.reduce(add, map(placed, range(len(pairs))))


@rule("max_pool2d")
def _max_pool2d(
    context: Context, x: Pair, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil: bool = False
) -> Pair:
    sizes = [_two(kernel), _two(stride or kernel), _two(padding), _two(dilation)]
    if ceil or sizes[3] != (1, 1):
        raise NotCovered("a dilated or ceil-mode max pool")
    padded = _padded_below(x, sizes[2])
    # Rows first, then columns: a maximum over a window is a chain of maxima of two.
    for axis, (window, step) in enumerate(zip(sizes[0], sizes[1], strict=True)):
        padded = _window_maximum(padded, axis - 2, window, step, context)
    return padded


def _two(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _padded_below(x: Pair, padding: tuple[int, int]) -> Pair:
    """Pad with a number that lies below every value of either network, so that it never wins a maximum."""
    if padding == (0, 0):
        return x
    floor = float((x.value.center.abs() + x.value.reach() + x.error.magnitude()).max()) * -2 - 1
    widths = [padding[1]] * 2 + [padding[0]] * 2
    padded = x.map(lambda tensor: F.pad(tensor, widths))
    outside = F.pad(torch.ones_like(x.value.center), widths) == 0
    return replace(padded, value=replace(padded.value, center=torch.where(outside, floor, padded.value.center)))


def _window_maximum(x: Pair, axis: int, window: int, step: int, context: Context) -> Pair:
    count = (x.value.center.shape[axis] - window) // step + 1

    def shifted(offset: int) -> Pair:
        index = torch.arange(count) * step + offset
        return x.map(lambda tensor: tensor.index_select(axis, index))

    return functools.reduce(lambda one, other: maximum(one, other, context), map(shifted, range(window)))
