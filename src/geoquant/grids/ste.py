"""How does a gradient pass through rounding?

Straight through (Bengio et al., arXiv:1308.3432): as if rounding were the identity inside the range and a
constant where it clips. A weight is inside when rounding, not clipping, decides its level: up to half of the
last gap beyond an end level (the convention of PyTorch's fake quantization, which masks by the rounded
integer). Scales and zero points receive no gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _StraightThrough(torch.autograd.Function):
    """Forward: the quantized weights as they are; backward: the gradient where `inside`, else 0."""

    generate_vmap_rule = True

    @staticmethod
    def forward(matrix: Tensor, quantized: Tensor, inside: Tensor) -> Tensor:
        return quantized.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None


def straight_through(matrix: Tensor, quantized: Tensor, inside: Tensor) -> Tensor:
    """Return `quantized`, through which gradients reach `matrix` unchanged where `inside`, as 0 elsewhere.

    Args:
        matrix: the latent weights, any shape.
        quantized: their rounded values, same shape; no gradient.
        inside: bool, same shape.

    >>> w = torch.tensor([0.4, 9.0], requires_grad=True)
    >>> straight_through(w, torch.tensor([0.5, 1.0]), torch.tensor([True, False])).sum().backward()
    >>> w.grad.tolist()
    [1.0, 0.0]
    """
    result: Tensor = _StraightThrough.apply(matrix, quantized, inside)  # type: ignore[no-untyped-call]
    return result
