"""Which inputs does each row of a weight matrix multiply?

A linear or convolution layer computes, at every position, matrix · patch (+ bias), where the matrix is the site's
view of the weight (channels, fan_in). Here are those patches, for linear layers, convolutions of one to three
dimensions (strided, dilated, padded in any mode, grouped) and transposed convolutions. Embeddings multiply
nothing and have none.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from geoquant.models.sites import layer_type

CHUNK = 1 << 24  # numbers in one block of patches


def has_patches(layer: nn.Module) -> bool:
    """Whether `patches` knows what this layer multiplies.

    >>> has_patches(nn.Conv2d(1, 1, 1)), has_patches(nn.Embedding(2, 2))
    (True, False)
    """
    return _kind(layer) in ("linear", "conv", "conv_transpose")


def patches(layer: nn.Module, inputs: Tensor, every: int = 1) -> Iterator[Tensor]:
    """Yield blocks (groups, fan_in, positions) of everything that `layer` multiplies, given its `inputs`.

    Each block is bounded in memory. Channels of the matrix are split evenly among the groups, in order, and
    matrix[group] @ block[group] is the layer's output before the bias.

    Args:
        layer: one for which `has_patches`.
        inputs: what the layer is called with; convolutions also take inputs without a batch axis.
        every: take one in so many of a convolution's output positions along each axis, others from sample to sample.

    >>> layer = nn.Conv1d(1, 1, 2)
    >>> next(patches(layer, torch.tensor([[1.0, 2.0, 3.0]]))).tolist()
    [[[1.0, 2.0], [2.0, 3.0]]]
    """
    if not isinstance(layer, _ConvNd):
        rows = inputs.reshape(-1, inputs.shape[-1])
        for block in torch.split(rows, max(1, CHUNK // max(1, rows.shape[1]))):
            yield block.t()[None]
        return
    batched = inputs if inputs.dim() == len(layer.kernel_size) + 2 else inputs[None]
    for block in torch.split(batched, _samples(layer, batched)):
        windows = _transposed_windows(layer, block) if isinstance(layer, _ConvTransposeNd) else _windows(layer, block)
        for phase in range(min(every, len(windows))):
            yield _flattened(_thinned(windows[phase::every], len(layer.kernel_size), every, phase), layer)


def _kind(layer: nn.Module) -> str:
    found = layer_type(layer)
    if found is None or (found.kind.startswith("conv") and not isinstance(layer, _ConvNd)):
        return ""
    return found.kind


def _samples(layer: _ConvNd, batched: Tensor) -> int:
    """Return how many samples fill a block; transposed convolutions have up to stride times more positions."""
    per_sample = batched[0].numel()
    for size, stride in zip(layer.kernel_size, layer.stride, strict=True):
        per_sample = per_sample * size * (stride if layer.transposed else 1) // (1 if layer.transposed else stride)
    return max(1, CHUNK // max(1, per_sample))


def _windows(layer: _ConvNd, inputs: Tensor) -> Tensor:
    """Return (N, C, *positions, *kernel) as a view into the padded inputs."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(inputs, _padding(layer), mode=mode)
    return _sliding(padded, layer.kernel_size, layer.dilation, layer.stride)


def _padding(layer: _ConvNd) -> list[int]:
    """Return paddings as `F.pad` takes them: last axis first, before and after."""
    pairs = []
    for axis, (size, dilation) in enumerate(zip(layer.kernel_size, layer.dilation, strict=True)):
        if layer.padding == "same":
            total = dilation * (size - 1)
            pairs.append((total // 2, total - total // 2))
        elif layer.padding == "valid":
            pairs.append((0, 0))
        else:
            width = int(layer.padding[axis])
            pairs.append((width, width))
    return list(itertools.chain.from_iterable(reversed(pairs)))


def _transposed_windows(layer: _ConvTransposeNd, inputs: Tensor) -> Tensor:
    """Return windows of the input spread out by the stride: the transposed convolution is a plain one on that.

    Output o sums x[i]·w[k] over o = i·stride − padding + k·dilation, so k runs against i: the kernel is flipped.
    """
    axes = len(layer.kernel_size)
    spread_shape = [(n - 1) * s + 1 for n, s in zip(inputs.shape[2:], layer.stride, strict=True)]
    spread = inputs.new_zeros(*inputs.shape[:2], *spread_shape)
    _strided(spread, layer.stride).copy_(inputs)
    pads: list[int] = []
    for axis in reversed(range(axes)):
        margin = layer.dilation[axis] * (layer.kernel_size[axis] - 1) - int(layer.padding[axis])
        pads += [margin, margin + layer.output_padding[axis]]
    windows = _sliding(F.pad(spread, pads), layer.kernel_size, layer.dilation, (1,) * axes)
    return windows.flip(tuple(range(-axes, 0)))


def _sliding(inputs: Tensor, kernel: Any, dilation: Any, stride: Any) -> Tensor:
    for axis, (size, gap, step) in enumerate(zip(kernel, dilation, stride, strict=True), start=2):
        inputs = inputs.unfold(axis, gap * (size - 1) + 1, step)
    return _strided(inputs, dilation)


def _strided(tensor: Tensor, steps: Any) -> Tensor:
    """Return a view of every n-th entry along each of the last axes."""
    index: tuple[Any, ...] = (..., *(slice(None, None, step) for step in steps))
    return tensor[index]


def _thinned(windows: Tensor, axes: int, every: int, phase: int) -> Tensor:
    """Keep one in `every` positions along each axis."""
    steps = [min(every, size) for size in windows.shape[2 : 2 + axes]]
    kept = (slice((phase + step // 2 * axis) % step, None, step) for axis, step in enumerate(steps))
    return windows[(slice(None), slice(None), *kept)]


def _flattened(windows: Tensor, layer: _ConvNd) -> Tensor:
    """Return (N, C, *positions, *kernel) as (groups, fan_in, N · positions)."""
    axes = len(layer.kernel_size)
    channel_first = windows.permute(1, *range(2 + axes, 2 + 2 * axes), 0, *range(2, 2 + axes))
    positions = windows.shape[0] * windows.shape[2 : 2 + axes].numel()
    return channel_first.reshape(layer.groups, -1, positions)
