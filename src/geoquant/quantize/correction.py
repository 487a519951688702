"""How far have the statistics moved that norms and biases were made for, and what puts them back?

Rounding shifts and rescales what a layer gives. The *relative* correction compares the float model with the
quantized one on the same batches: a batch norm's stored variance is multiplied by the ratio of both variances, its
stored mean moves with the inputs, so that what leaves the norm has the mean and the variance that it had in float; a
layer's bias moves by the mean error of its output (bias correction, Nagel et al.,
arXiv:1906.04721, with measured means). What the norm stored about the training data beyond these batches stays:
estimating it anew loses accuracy wherever training was augmented or the batches are few. Correct in the order of
execution: each correction changes what comes after it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from geoquant.models import Arrival, Forward, has_patches, inference, predict
from geoquant.models.moments import ChannelMoments, channel_axis, first_input

# A channel that kept less than this share of its variance carries no signal that a scale could bring back.
_LOST = 0.01


@dataclass(eq=False)
class FloatRecord:
    """What the float model shows on the calibration batches.

    Attributes:
        inputs: moments of what enters each batch norm, by module name; first call of a forward only.
        outputs: moments of what each layer with a bias gives, likewise.
        calls: how often each watched module was called in all.
        order: names of the modules called, in the order of execution.
    """

    inputs: dict[str, ChannelMoments] = field(default_factory=dict)
    outputs: dict[str, ChannelMoments] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)


def record_float(
    model: nn.Module, batches: Sequence[Any], names: Collection[str], forward: Forward | None = None
) -> FloatRecord:
    """Run the float `model` once over `batches` and note the statistics of the modules called `names`."""
    record = FloatRecord()
    fresh: set[str] = set()
    way: list[str] = []

    def watch(name: str, module: nn.Module) -> Any:
        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            record.calls[name] = record.calls.get(name, 0) + 1
            if name not in fresh:
                return
            fresh.discard(name)
            way.append(name)
            if is_stored_norm(module):
                entered = first_input(Arrival(args, kwargs))
                record.inputs.setdefault(name, ChannelMoments()).add(entered, channel_axis(module, entered))
            elif has_bias(module):
                record.outputs.setdefault(name, ChannelMoments()).add(output, channel_axis(module, output))

        return module.register_forward_hook(note, with_kwargs=True)

    hooks = [watch(name, model.get_submodule(name)) for name in names]
    try:
        with inference(model):
            for batch in batches:
                fresh.update(names)
                way.clear()
                predict(model, batch, forward)
                _merge_(record.order, way)
    finally:
        for hook in hooks:
            hook.remove()
    return record


def _merge_(order: list[str], way: Sequence[str]) -> None:
    """Take the names of one forward's `way` into `order`: each new one just before what came next.

    >>> order = ["a", "c"]
    >>> _merge_(order, ["a", "b", "c", "d"])
    >>> order
    ['a', 'b', 'c', 'd']
    """
    place = len(order)
    for name in reversed(way):
        if name in order:
            place = order.index(name)
        else:
            order.insert(place, name)


def is_stored_norm(module: nn.Module) -> bool:
    """Whether `module` is a batch norm that keeps running statistics.

    >>> is_stored_norm(nn.BatchNorm1d(2)), is_stored_norm(nn.BatchNorm1d(2, track_running_stats=False))
    (True, False)
    """
    return isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None


def has_bias(module: nn.Module) -> bool:
    """Whether `module` multiplies its inputs by a matrix and adds a bias of its own."""
    return has_patches(module) and module._parameters.get("bias") is not None


def correct_norm_(norm: nn.Module, reference: ChannelMoments, arrivals: Sequence[Arrival]) -> None:
    """Make the outputs of `norm` have the mean and variance that they have in float.

    With r the ratio of the variances of quantized and float inputs, σ² + ε becomes r·(σ² + ε), and the stored mean
    keeps its distance to the inputs' mean, in the new units: m_q + √r·(μ − m_f).

    >>> norm, reference = nn.BatchNorm1d(1, eps=0).eval(), ChannelMoments()
    >>> reference.add(torch.tensor([[-1.0], [1.0]]), axis=1)                           # mean 0, variance 1
    >>> correct_norm_(norm, reference, [Arrival((torch.tensor([[1.0], [5.0]]),), {})])  # mean 3, variance 4
    >>> norm.running_mean.item(), norm.running_var.item()
    (3.0, 4.0)
    """
    assert isinstance(norm, _BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    seen = ChannelMoments()
    for arrival in arrivals:
        seen.add(first_input(arrival), 1)
    before, now = reference.variance, seen.variance
    ratio = torch.where(before > 0, now / before.clamp(min=torch.finfo(torch.float64).tiny), 1.0)
    ratio = torch.where(ratio < _LOST, 1.0, ratio)
    with torch.no_grad():
        offset = norm.running_mean.double() - reference.mean
        norm.running_mean.copy_(seen.mean + ratio.sqrt() * offset)
        norm.running_var.copy_(((norm.running_var.double() + norm.eps) * ratio - norm.eps).clamp(min=0))


def correct_bias_(layer: nn.Module, reference: ChannelMoments, arrivals: Sequence[Arrival]) -> None:
    """Move the bias of `layer` by the mean error of its output, so that this mean is the float model's again."""
    seen = ChannelMoments()
    for arrival in arrivals:
        output = type(layer).forward(layer, *arrival.args, **arrival.kwargs)
        seen.add(output, channel_axis(layer, output))
    bias = layer._parameters["bias"]
    assert isinstance(bias, Tensor)
    with torch.no_grad():
        bias.copy_(bias.double() + reference.mean - seen.mean)
