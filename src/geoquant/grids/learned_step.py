"""How do gradients reach latent weights and the step of their grid at once?

Learned step size quantization (LSQ; Esser et al., arXiv:1902.08153): rounding passes gradients straight through to the
latent weight where it is inside the range, and the step moves by its own straight-through gradient, level − x inside
and the end level outside. One autograd function of few elementwise operations, which keep the memory format of the
weights, so that training with it costs little more than training without. For weights the range is that of
`clip_limits`, half a gap wider than in the paper: with few levels many weights lie just beyond the end ones, a quarter
of them with three, half with two, and would stand still.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from geoquant.grids.formats import NumberFormat

Held = tuple[Tensor, Tensor]


class _LearnedStep(torch.autograd.Function):
    """Forward: levels times step. Backward: see the module."""

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        step: Tensor,
        zero: Tensor | None,
        format: NumberFormat,
        limits: tuple[float, float],
        factor: float,
        held: Held | None,
        pull: float,
    ) -> tuple[Tensor, Tensor]:
        divisor = torch.where(step == 0, torch.inf, step)
        x = values / divisor if zero is None else torch.addcdiv(zero, values, divisor)
        level = format.nearest(x)
        if held is not None:
            level = torch.where(held[0], held[1], level)
        ctx.save_for_backward(x, level, step, zero, None if held is None else held[0])
        ctx.limits, ctx.factor, ctx.pull = limits, factor, pull
        ctx.mark_non_differentiable(level)
        return (level if zero is None else level - zero) * step, level

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0]
        x, level, step, zero, frozen = ctx.saved_tensors
        low, high = ctx.limits
        inside = x.clamp(low, high) == x
        if frozen is not None:
            inside &= ~frozen
        step_gradient = None
        if ctx.needs_input_grad[1]:
            slope = torch.addcmul(level, x, inside, value=-1)
            if zero is not None:  # outside, the step multiplies level − zero
                slope = slope.sub_(zero * ~inside)
            step_gradient = slope.mul_(gradient).sum_to_size(step.shape) * ctx.factor
        if ctx.pull:
            gradient = torch.addcmul(gradient, x - level, step, value=2 * ctx.pull)
        value_gradient = gradient * inside if ctx.needs_input_grad[0] else None
        return value_gradient, step_gradient, None, None, None, None, None, None


def learned_step(
    values: Tensor,
    step: Tensor,
    zero: Tensor | None,
    format: NumberFormat,
    limits: tuple[float, float],
    factor: float = 1.0,
    held: Held | None = None,
    pull: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Return `values` on their grid, and their levels; gradients reach `values` and `step`.

    Args:
        values: any shape, any memory format, which the result keeps.
        step: units of `values` per level, broadcastable to them; may be negative, and 0 gives 0.
        zero: the level that stands for 0, float, broadcastable; None for no zero point.
        format: the levels.
        limits: the range of x = values / step + zero inside which gradients pass (see `clip_limits`).
        factor: of the step's gradient; LSQ takes 1/√(n · highest level) for n values that share a step.
        held: which values are frozen, and to which levels; they receive no gradient.
        pull: λ of dampening (Nagel et al., arXiv:2203.11086): the gradient of λ Σ (value − result)² over the values
            inside, results held fixed, is added to that of `values` in each backward pass.

    >>> from geoquant.grids.formats import Integer
    >>> w, step = torch.tensor([0.6, 9.0], requires_grad=True), torch.tensor(0.5, requires_grad=True)
    >>> quantized, level = learned_step(w, step, None, Integer(3), (-4.0, 3.0))
    >>> quantized.sum().backward()
    >>> quantized.tolist(), w.grad.tolist(), round(step.grad.item(), 6)  # (1 − 1.2) + 3
    ([0.5, 1.5], [1.0, 0.0], 2.8)
    """
    result: tuple[Tensor, Tensor] = _LearnedStep.apply(values, step, zero, format, limits, factor, held, pull)  # type: ignore[no-untyped-call]
    return result
