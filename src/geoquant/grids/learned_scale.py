"""How does a large tensor move the one scale that it lies on, in as few passes over memory as that takes?

The gradients of `geoquant.grids.learned_step`, for activations: millions of numbers share a step, none is frozen and
none is pulled. There each pass over memory costs as much as a layer's share of the product, and comparisons and
selections cost several; so values outside are masked by the backward of a clamp, and the step's gradient is two inner
products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from geoquant.grids.formats import NumberFormat

_EDGE = 2.0**-20
"""The clamp's backward stops at its limits; values that lie on an end level are inside, so limits are a hair wider."""


class _LearnedScale(torch.autograd.Function):
    """Forward: (level − zero) · step. Backward: straight through inside the range; for the step see `learned_step`."""

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        step: Tensor,
        zero: int,
        format: NumberFormat,
        limits: tuple[float, float],
        factor: float,
    ) -> Tensor:
        x = values / torch.where(step == 0, torch.inf, step)
        level = format.nearest(x + zero if zero else x)
        if zero:
            level.sub_(zero)
        ctx.save_for_backward(x, level)
        low, high = limits
        ctx.limits = low - zero - _EDGE * max(1, abs(low)), high - zero + _EDGE * max(1, abs(high))
        ctx.factor, ctx.shape = factor, step.shape
        return level * step

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0]
        x, level = ctx.saved_tensors
        passed = torch.ops.aten.hardtanh_backward(gradient, x, *ctx.limits)
        slope = None
        if ctx.needs_input_grad[1]:
            slope = ((_inner(gradient, level) - _inner(passed, x)) * ctx.factor).reshape(ctx.shape)
        return passed if ctx.needs_input_grad[0] else None, slope, None, None, None, None


def _inner(one: Tensor, other: Tensor) -> Tensor:
    """Return Σ one · other, in one pass where both lie alike in memory without gaps."""
    if one.stride() == other.stride() and all(each.untyped_storage().nbytes() == each.nbytes for each in (one, other)):
        return torch.dot(*(each.as_strided((each.numel(),), (1,)) for each in (one, other)))
    return (one * other).sum()


def learned_scale(
    values: Tensor, step: Tensor, zero: int, format: NumberFormat, limits: tuple[float, float], factor: float = 1.0
) -> Tensor:
    """Return `values` on the grid of one learned step; gradients reach `values` and `step`.

    Args:
        values: any shape and memory format, which the result keeps; float32 or float64.
        step: units of `values` per level, one number.
        zero: the level that stands for 0.
        format: the levels.
        limits: the range of values / step + zero inside which gradients pass.
        factor: of the step's gradient.

    >>> from geoquant.grids.formats import Integer
    >>> x, step = torch.tensor([0.6, 9.0], requires_grad=True), torch.tensor(0.5, requires_grad=True)
    >>> quantized = learned_scale(x, step, 0, Integer(3), (-4.0, 3.0))
    >>> quantized.sum().backward()
    >>> quantized.tolist(), x.grad.tolist(), round(step.grad.item(), 6)  # (1 − 1.2) + 3
    ([0.5, 1.5], [1.0, 0.0], 2.8)
    """
    result: Tensor = _LearnedScale.apply(values, step, zero, format, limits, factor)  # type: ignore[no-untyped-call]
    return result
