"""What do a layer's inputs and outputs look like on the calibration data, in second and first moments?

Sums are kept in float64 and taken batch by batch, so that memory does not grow with the data. Neighbouring positions
of a convolution show much the same: where there are far more of them than a moment needs, each sample gives some.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from geoquant.models.calling import Forward, inference, predict
from geoquant.models.lockstep import Arrival
from geoquant.models.patches import has_patches, patches
from geoquant.models.sites import Site

ENOUGH = 128
"""Positions of a convolution for each input of one output that a second moment is taken over, at least."""


def second_moment(layer: nn.Module, arrivals: Sequence[Arrival]) -> Tensor | None:
    """Return E[x xᵀ] over everything that `layer` multiplies, (groups, fan_in, fan_in) float64.

    None when nothing arrived. The layer is one for which `has_patches`.

    >>> arrived = Arrival((torch.tensor([[1.0, 2.0], [3.0, 0.0]]),), {})
    >>> second_moment(nn.Linear(2, 5), [arrived])[0].tolist()
    [[5.0, 1.0], [1.0, 2.0]]
    """
    total: Tensor | None = None
    positions = 0
    every = thinning(layer, arrivals)
    for arrival in arrivals:
        for block in patches(layer, first_input(arrival), every):
            block = block.float()
            product = (block @ block.mT).double()
            total = product if total is None else total.add_(product)
            positions += block.shape[2]
    return None if total is None or positions == 0 else total / positions


def thinning(layer: nn.Module, arrivals: Sequence[Arrival]) -> int:
    """Return how far apart positions of a convolution may lie so that enough remain."""
    if not isinstance(layer, _ConvNd) or layer.transposed:
        return 1
    fan_in = layer.weight[0].numel()
    inputs = sum(first_input(arrival).numel() for arrival in arrivals)
    positions = inputs / layer.in_channels / math.prod(layer.stride)
    return max(1, int((positions / (ENOUGH * fan_in)) ** (1 / len(layer.kernel_size))))


def input_moment(layer: nn.Module, site: Site, arrivals: Sequence[Arrival]) -> Tensor | None:
    """Return the second moment of what multiplies the weight of `site` in `layer`; None where that is not seen.

    The joint projection of attention sees query, key and value: three groups.
    """
    if isinstance(layer, nn.MultiheadAttention):
        return _attention_moment(layer, site, arrivals)
    return second_moment(layer, arrivals) if has_patches(layer) else None


def _attention_moment(layer: nn.MultiheadAttention, site: Site, arrivals: Sequence[Arrival]) -> Tensor | None:
    places = {"q_proj_weight": (0,), "k_proj_weight": (1,), "v_proj_weight": (2,)}
    total, rows = torch.zeros(()), 0
    for arrival in arrivals:
        named = ("query", "key", "value")[len(arrival.args) :]
        entered = (*arrival.args, *(arrival.kwargs[name] for name in named))
        chosen = [entered[place] for place in places.get(site.parameter.rpartition(".")[2], (0, 1, 2))]
        flat = torch.stack([_sum_of_squares(tensor) / tensor[..., 0].numel() for tensor in chosen])
        total, rows = total.to(flat) + flat, rows + 1
    return total / rows if rows else None


def _sum_of_squares(tensor: Tensor) -> Tensor:
    flat = tensor.reshape(-1, tensor.shape[-1]).float()
    return (flat.T @ flat).double()


def moment_of_all_calls(
    model: nn.Module, batches: Sequence[Any], names: Sequence[str], forward: Forward | None = None
) -> Tensor | None:
    """Return E[x xᵀ] over all calls of the modules called `names`, which share a weight; None where none multiplies.

    >>> layer = nn.Linear(1, 1)
    >>> moment_of_all_calls(nn.Sequential(layer), [torch.ones(2, 1), 3 * torch.ones(2, 1)], ["0"]).tolist()
    [[[5.0]]]
    """
    found: list[tuple[Tensor, int]] = []

    def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        moment = second_moment(layer, [Arrival(args, kwargs)])
        if moment is not None:
            found.append((moment, first_input(Arrival(args, kwargs)).numel()))

    layers = [layer for layer in map(model.get_submodule, names) if has_patches(layer)]
    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    try:
        with inference(model):
            for batch in batches:
                predict(model, batch, forward)
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        return None
    return torch.stack([moment * weight for moment, weight in found]).sum(0) / sum(weight for _, weight in found)


def first_input(arrival: Arrival) -> Tensor:
    """Return the tensor that a layer was called with."""
    tensor = arrival.args[0] if arrival.args else next(iter(arrival.kwargs.values()))
    assert isinstance(tensor, Tensor)
    return tensor


@dataclass(eq=False)
class ChannelMoments:
    """Mean and variance of each channel over all that was added, float64.

    >>> seen = ChannelMoments()
    >>> seen.add(torch.tensor([[1.0, 5.0], [3.0, 5.0]]), axis=1)
    >>> seen.mean.tolist(), seen.variance.tolist()
    ([2.0, 5.0], [1.0, 0.0])
    """

    count: int = 0
    _sum: Tensor | None = None
    _squares: Tensor | None = None

    def add(self, tensor: Tensor, axis: int) -> None:
        """Take in a tensor whose `axis` counts channels."""
        rows = tensor.detach().movedim(axis, 0).flatten(1).double()
        total, squares = rows.sum(1), rows.square().sum(1)
        self._sum = total if self._sum is None else self._sum + total
        self._squares = squares if self._squares is None else self._squares + squares
        self.count += rows.shape[1]

    @property
    def mean(self) -> Tensor:
        """(channels,)."""
        assert self._sum is not None
        return self._sum / self.count

    @property
    def variance(self) -> Tensor:
        """(channels,), of the population."""
        assert self._squares is not None
        return (self._squares / self.count - self.mean.square()).clamp(min=0)


def channel_axis(layer: nn.Module, tensor: Tensor) -> int:
    """Return the axis of a layer's output (for batch norms also: input) that counts its channels."""
    if isinstance(layer, _BatchNorm):
        return 1
    if isinstance(layer, _ConvNd):
        return tensor.dim() - len(layer.kernel_size) - 1
    return tensor.dim() - 1
