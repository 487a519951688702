"""How is the weight gradient of a layer a product of what it saw and what came back?

For a layer that multiplies its input by its weight, the gradient of one sample is leftᵀ·right summed over
positions, with one factor from the forward pass and one from the backward pass. Per-sample norms, diagonals
and Kronecker factors all start from these two. Layers known: Linear, Conv1d/2d/3d, their transposes, and
the Conv1D of GPT-2; Embedding has the same form with one-hot rows that are never written out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pair = tuple[Tensor, Tensor]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def is_known(module: nn.Module) -> bool:
    """Say whether the gradient of `module` has a known product form; a changed `forward` makes it unknown.

    >>> is_known(nn.Conv2d(1, 1, 3)), is_known(nn.LayerNorm(3))
    (True, False)
    """
    if isinstance(module, nn.Embedding):
        plain = type(module).forward is nn.Embedding.forward
        return plain and module.max_norm is None and not module.scale_grad_by_freq and not module.sparse
    if is_gpt2_conv1d(module):
        return True
    bases = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)
    return any(isinstance(module, base) and type(module).forward is base.forward for base in bases)


def is_gpt2_conv1d(module: nn.Module) -> bool:
    """Recognise transformers' Conv1D, a linear layer that stores (in, out), without importing transformers."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def rows_per_sample(values: Tensor, samples: int) -> Tensor:
    """View (directions, rows, ...) whose rows are sample-major as (directions, samples, rows per sample, ...)."""
    return torch.unflatten(values, 1, (samples, -1))


def to_weight(module: nn.Module, matrix: Tensor) -> Tensor:
    """Lay (..., groups, rows, columns), as `factors` multiply out, as (..., *weight shape).

    >>> layer = nn.Conv2d(4, 6, 3, groups=2)
    >>> torch.equal(to_weight(layer, from_weight(layer, layer.weight)), layer.weight)
    True
    """
    lead = matrix.shape[:-3]
    if isinstance(module, CONVOLUTIONS + TRANSPOSED):
        kernel = module.kernel_size
        split = matrix.reshape(*lead, matrix.shape[-3] * matrix.shape[-2], *kernel, -1)
        return split.movedim(-1, len(lead) + 1)
    single = matrix.squeeze(-3)
    return single.transpose(-1, -2) if is_gpt2_conv1d(module) else single


def from_weight(module: nn.Module, weight: Tensor) -> Tensor:
    """Lay (..., *weight shape) as (..., groups, rows, columns); the inverse of `to_weight`."""
    if isinstance(module, CONVOLUTIONS + TRANSPOSED):
        axes = len(module.kernel_size)
        moved = weight.movedim(-1 - axes, -1)
        lead = weight.shape[: -2 - axes]
        return moved.reshape(*lead, module.groups, weight.shape[-2 - axes] // module.groups, -1)
    turned = weight.transpose(-1, -2) if is_gpt2_conv1d(module) else weight
    return turned.unsqueeze(-3)


def bias_gradient(module: nn.Module, deltas: Tensor, samples: int) -> Tensor:
    """Return (directions, samples, channels): `deltas` summed over positions."""
    if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)):
        deltas = deltas.flatten(3).sum(-1) if deltas.dim() > 3 else deltas
    return deltas.reshape(deltas.shape[0], samples, -1, deltas.shape[-1]).sum(2)


def factors(module: nn.Module, seen: Tensor, deltas: Tensor, samples: int) -> Pair:
    """Write each sample's weight gradient as leftᵀ·right over positions.

    Returns:
        left: (directions, samples, groups, positions, rows), right: (1 or directions, samples, groups,
        positions, columns). Rows and columns are the weight's in some order that norms do not see.
    """
    if isinstance(module, CONVOLUTIONS):
        return _convolution_factors(module, seen, deltas, samples)
    if isinstance(module, TRANSPOSED):
        return _transposed_factors(module, seen, deltas, samples)
    directions = deltas.shape[0]
    left = deltas.reshape(directions, samples, 1, -1, deltas.shape[-1])
    return left, seen.reshape(1, samples, 1, -1, seen.shape[-1])


def _convolution_factors(module: Any, seen: Tensor, deltas: Tensor, samples: int) -> Pair:
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = F.pad(seen, module._reversed_padding_repeated_twice, mode=mode) if _pads(module) else seen
    right = patches(padded, module.kernel_size, module.stride, module.dilation, module.groups)
    return _grouped(deltas, module.groups, samples), _by_sample(right.unsqueeze(0), samples)


def _transposed_factors(module: Any, seen: Tensor, deltas: Tensor, samples: int) -> Pair:
    # A transposed convolution is the adjoint of a convolution from its output to its input: the roles of the
    # input and of the gradient change places.
    directions, spatial = deltas.shape[0], seen.shape[2:]
    sides = [side for padding in reversed(module.padding) for side in (padding, padding)]
    padded = F.pad(deltas.flatten(0, 1), sides)
    taken = patches(padded, module.kernel_size, module.stride, module.dilation, module.groups, spatial)
    right = torch.unflatten(taken, 0, (directions, -1))
    return _grouped(seen.unsqueeze(0), module.groups, samples), _by_sample(right, samples)


def _pads(module: Any) -> bool:
    return any(module._reversed_padding_repeated_twice)


def _grouped(values: Tensor, groups: int, samples: int) -> Tensor:
    """Lay (directions, images, channels, *space) out as (directions, samples, groups, positions, channels)."""
    flat = values.flatten(3) if values.dim() > 3 else values.unsqueeze(-1)
    split = torch.unflatten(flat, 2, (groups, -1)).transpose(-1, -2)
    return _by_sample(split, samples)


def _by_sample(values: Tensor, samples: int) -> Tensor:
    """Join the positions of several images of one sample: (d, images, g, p, c) → (d, samples, g, p', c)."""
    if values.shape[1] == samples:
        return values
    return torch.unflatten(values, 1, (samples, -1)).transpose(2, 3).flatten(3, 4)


def patches(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
    outputs: Sequence[int] | None = None,
) -> Tensor:
    """Return what each output position of a convolution sees: (images, groups, positions, columns).

    Args:
        x: padded input, (images, channels, *space).
        kernel: kernel size per axis.
        stride: per axis.
        dilation: per axis.
        groups: of channels.
        outputs: positions per axis to keep, when not all.

    >>> patches(torch.arange(4.0).view(1, 1, 4), (2,), (1,), (1,)).squeeze()
    tensor([[0., 1.],
            [1., 2.],
            [2., 3.]])
    """
    axes = len(kernel)
    for axis in range(axes):
        span = dilation[axis] * (kernel[axis] - 1) + 1
        x = x.unfold(2 + axis, span, stride[axis])[..., :: dilation[axis]]
        if outputs is not None:
            x = x.narrow(2 + axis, 0, outputs[axis])
    images, channels = x.shape[:2]
    x = x.reshape(images, groups, channels // groups, *x.shape[2:]) if groups > 1 else x.unsqueeze(1)
    # Channels last inside a patch: with channels_last inputs the copy then moves whole runs of memory.
    order = [0, 1, *range(3, 3 + axes), *range(3 + axes, 3 + 2 * axes), 2]
    return x.permute(order).flatten(2 + axes).flatten(2, 1 + axes)
