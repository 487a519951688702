"""How does one layer compute forward and backward in few bits?

Forward: y = Q(x)·Q(w) + b. Backward, with the output's gradient g: Q(g)·Q(w) for the input and Q(g)·Q(x) for the
weight; roundings of x and w pass the gradient straight through (dynamic scales clip nothing). A scale multiplies the
small operand, never the large result, so that rounding costs two passes over each activation and no more. The bias is
added and differentiated in float32.

A layer whose precision is exact calls the module's own forward: bit-identical to plain PyTorch. Every call counts its
floating-point operations, with the formulas of torch's own counter.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import conv_flop_count, mm_flop

from geoquant.training import kernels
from geoquant.training.accounting import LayerCount
from geoquant.training.noise import Noise
from geoquant.training.numerics import Rounded, Rounding, level, round_rows, round_tensor, rounded_rows
from geoquant.training.precision import LayerPrecision

COVERED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class LowPrecisionLayer:
    """What one covered layer knows while it is trained: its precision, its noise, its counts.

    Attributes:
        module: an `nn.Linear` or `nn.Conv1d`, `nn.Conv2d`, `nn.Conv3d`.
        precision: as it is now; may be replaced between steps.
        suspended: compute in float32 and count nothing, as measurements do.
    """

    def __init__(
        self, name: str, module: nn.Module, shared: Noise, local: Noise, forward: Rounding, backward: Rounding
    ) -> None:
        self.name, self.module = name, module
        self.precision = LayerPrecision()
        self.count = LayerCount()
        self.suspended = False
        self.plain = module.forward
        self._shared, self._local = shared, local
        self._forward, self._backward = forward, backward

    def __call__(self, x: Tensor) -> Tensor:
        """Compute the layer on `x`."""
        if self.suspended or not torch.is_grad_enabled():
            plain: Tensor = self.plain(x)
            return plain
        y: Tensor
        if self.precision.exact:
            y = self.plain(x)
            self._count_exact(x, y)
        elif isinstance(self.module, nn.Linear):
            y = _Linear.apply(x, self.module.weight, self.module.bias, self)  # type: ignore[no-untyped-call]
        else:
            module: Any = self.module
            inputs, padding = _padded(module, x)
            y = _Convolution.apply(inputs, module.weight, module.bias, padding, self)  # type: ignore[no-untyped-call]
        return y

    @property
    def weight(self) -> Tensor:
        """The layer's weight, (out, in, ...)."""
        found: Tensor = self.module.weight  # type: ignore[assignment]
        return found

    def round_input(self, x: Tensor) -> Rounded:
        """Round the layer's input."""
        return round_tensor(x, level(self.precision.activations), self._forward, self._local)

    def round_weight(self, weight: Tensor) -> Rounded:
        """Round the weights, the same on every rank."""
        return rounded_rows(weight, level(self.precision.weights), self._forward, self._shared)

    def round_gradient(self, gradient: Tensor) -> Rounded:
        """Round the gradient of the output."""
        return round_tensor(gradient, level(self.precision.gradients), self._backward, self._local)

    def round_weight_gradient(self, gradient: Tensor) -> Tensor:
        """Round the gradient of the weights."""
        return round_rows(gradient, level(self.precision.weight_gradients), self._backward, self._local)

    def unit(self, one: str, other: str, device: torch.device) -> str | None:
        """Return the level in which a product of operands at levels `one` and `other` has a unit on `device`."""
        return one if one == other and kernels.usable(one, device) else None

    def flops(self, x_shape: torch.Size, y_shape: torch.Size) -> int:
        """Return the operations of one product of this layer; an addition and a multiplication are two."""
        weight = self.weight.shape
        if isinstance(self.module, nn.Linear):
            return int(mm_flop((x_shape.numel() // x_shape[-1], x_shape[-1]), (weight[1], weight[0])))
        return int(conv_flop_count(list(x_shape), list(weight), list(y_shape)))

    def _count_exact(self, x: Tensor, y: Tensor) -> None:
        flops, precision, to_input = self.flops(x.shape, y.shape), self.precision, x.requires_grad
        self.count.forward(flops, precision, x.numel())

        def count_backward(gradient: Tensor) -> None:
            self.count.backward(flops, precision, to_input, self.weight.requires_grad)

        if y.requires_grad:
            y.register_hook(count_backward)  # type: ignore[no-untyped-call]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: LowPrecisionLayer) -> Tensor:
        low, rows = layer.round_input(x), layer.round_weight(weight)
        small, unit = rows.dequantize(), layer.unit(layer.precision.weights, layer.precision.activations, x.device)
        if unit is None:
            y = F.linear(low.codes, small * low.scale, None if bias is None else bias.float())
        else:
            found = kernels.matmul(low.codes.reshape(-1, x.shape[-1]), rows.codes.T, unit)
            scale = rows.scale if isinstance(rows.scale, float) else rows.scale.T
            y = (found * (scale * low.scale)).view(*x.shape[:-1], -1)
            y = y if bias is None else y + bias
        ctx.save_for_backward(low.codes, small)
        _remember(ctx, layer, low, x, y, bias is not None)
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        codes, small = ctx.saved_tensors
        low = _backward_begins(ctx, codes, gradients[0])
        wants = ctx.needs_input_grad
        g, x = low.codes.reshape(-1, low.codes.shape[-1]), codes.reshape(-1, codes.shape[-1])
        grad_x, grad_w = None, None
        if wants[0]:
            unit = ctx.layer.unit(ctx.layer.precision.gradients, ctx.layer.precision.weights, g.device)
            own = small * low.scale
            grad_x = kernels.matmul(g, own, unit) if unit in kernels.HALF else g @ own
            grad_x = grad_x.view(codes.shape)
        if wants[1]:
            unit = ctx.layer.unit(ctx.layer.precision.gradients, ctx.layer.precision.activations, g.device)
            # On units unsigned codes stand on the left, and the input is what has none below zero.
            grad_w = g.T @ x if unit is None else kernels.matmul(x.T, g, unit).T.contiguous()
            grad_w = ctx.layer.round_weight_gradient(grad_w.mul_(low.scale).mul_(ctx.scale))
        grad_b = g.sum(0) * low.scale if wants[2] else None
        return _typed(ctx, grad_x), grad_w, grad_b, None


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, ...], layer: LowPrecisionLayer
    ) -> Tensor:
        low, small = layer.round_input(x), layer.round_weight(weight).dequantize()
        module: Any = layer.module
        ctx.geometry = (module.stride, padding, module.dilation, False, [0] * len(padding), module.groups)
        half = _half(layer.unit(layer.precision.weights, layer.precision.activations, x.device))
        own, shift = (small * low.scale).to(half), None if bias is None else bias.to(half)
        y = torch.convolution(low.codes.to(half), own, shift, *ctx.geometry).float()
        ctx.save_for_backward(low.codes, small)
        _remember(ctx, layer, low, x, y, bias is not None)
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        codes, small = ctx.saved_tensors
        low = _backward_begins(ctx, codes, gradients[0])
        wants, precision = ctx.needs_input_grad, ctx.layer.precision
        half = _half(ctx.layer.unit(precision.gradients, precision.activations, codes.device))
        operands = [each.to(half) for each in (low.codes, codes, small * low.scale)]
        found = torch.ops.aten.convolution_backward(*operands, [len(small)], *ctx.geometry, list(wants[:3]))
        grad_x, grad_w, grad_b = (g.float() if wanted else None for g, wanted in zip(found, wants[:3], strict=True))
        if grad_w is not None:
            grad_w = ctx.layer.round_weight_gradient(grad_w.mul_(low.scale).mul_(ctx.scale))
        return _typed(ctx, grad_x), grad_w, None if grad_b is None else grad_b * low.scale, None, None


def _half(unit: str | None) -> torch.dtype:
    """Return the type in which a convolution has a unit, float32 where it has none."""
    return torch.float32 if unit is None else kernels.HALF.get(unit, torch.float32)


def _remember(ctx: Any, layer: LowPrecisionLayer, low: Rounded, x: Tensor, y: Tensor, biased: bool) -> None:
    # The precision may change before the backward of this forward: gradients follow the one that holds then,
    # the count follows what was computed.
    ctx.layer, ctx.scale, ctx.dtype, ctx.biased = layer, low.scale, x.dtype, biased
    ctx.flops = layer.flops(x.shape, y.shape)
    layer.count.forward(ctx.flops, layer.precision, x.numel())


def _backward_begins(ctx: Any, codes: Tensor, gradient: Tensor) -> Rounded:
    layer: LowPrecisionLayer = ctx.layer
    layer.count.backward(ctx.flops, layer.precision, ctx.needs_input_grad[0], ctx.needs_input_grad[1])
    return layer.round_gradient(gradient)


def _typed(ctx: Any, gradient: Tensor | None) -> Tensor | None:
    return None if gradient is None else gradient.to(ctx.dtype)


def _padded(module: Any, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Return the input and the zero padding that is left to the product."""
    if module.padding_mode != "zeros":
        return F.pad(x, module._reversed_padding_repeated_twice, mode=module.padding_mode), (0,) * len(module.stride)
    if isinstance(module.padding, str):
        return F.pad(x, module._reversed_padding_repeated_twice), (0,) * len(module.stride)
    return x, tuple(module.padding)
