"""Which layer or norm can hand a factor per channel to the layers that read it?

A group is one source and all its readers. A factor may go from the source's output channels into the readers'
columns only where every path between them lets it through; channels that meet anything else are held, and sources
whose channels are all held come back with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from geoquant.transforms.carrying import Arrival, Carried, Rule, carry
from geoquant.transforms.protocol import Skipped
from geoquant.transforms.recording import Flow, is_norm
from geoquant.transforms.scaling import (
    inputs_of,
    is_layer,
    norm_offset,
    obstacles,
    parameters_of,
    scale_inputs_,
    scale_outputs_,
)


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that reads a source.

    Attributes:
        name: of the layer.
        module: the layer.
        columns: which channel of the source each of its inputs is, (inputs,).
    """

    name: str
    module: nn.Module
    columns: Tensor

    def of_channels(self, values: Tensor, channels: int) -> Tensor:
        """Return the largest of `values` (inputs,) of each channel of the source, (channels,)."""
        found = values.new_zeros(channels)
        return found.scatter_reduce_(0, self.columns.to(values.device), values, "amax")


@dataclass(frozen=True, eq=False)
class Group:
    """One source of channels and all layers that read it.

    Attributes:
        name: of the source.
        module: the source.
        readers: in the order of execution.
        free: which channels may be scaled, (channels,) bool.
        note: why the others are held; empty where all are free.
        carried: where the channels go.
    """

    name: str
    module: nn.Module
    readers: tuple[Reader, ...]
    free: Tensor
    note: str
    carried: Carried

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the readers."""
        return tuple(reader.name for reader in self.readers)

    def scale_(self, factor: Tensor) -> None:
        """Divide the source's free channels by `factor` (channels,) and multiply the readers' columns by it."""
        factor = self.held(factor)
        scale_outputs_(self.module, 1 / factor)
        for reader in self.readers:
            scale_inputs_(reader.module, factor[reader.columns])

    def held(self, factor: Tensor) -> Tensor:
        """Return `factor` in float64, 1 where a channel is held or nothing can be divided by the factor."""
        factor = factor.double().cpu()
        return torch.where(self.free & (factor != 0) & factor.isfinite(), factor, 1.0)


Wanted = Callable[[nn.Module], bool]


def find_groups(
    model: nn.Module, flow: Flow, wanted: Wanted, rules: Mapping[str, Rule]
) -> tuple[list[Group], list[Skipped]]:
    """Return the groups of all sources that are `wanted`, in the order of execution, and the sources that have none."""
    why = obstacles(model)
    places = {step.module: place for place, step in reversed(list(enumerate(flow.steps)))}
    candidates = [(name, module) for name, module in model.named_modules() if wanted(module)]
    groups, skipped = [], []
    for name, module in sorted(candidates, key=lambda pair: places.get(pair[1], len(places))):
        found = _group(name, module, flow, rules, why)
        if isinstance(found, str):
            skipped.append(Skipped(name, found))
        else:
            groups.append(found)
    return groups, skipped


def is_scalable_norm(module: nn.Module) -> bool:
    """Whether `module` is a norm, with or without a scale, that works on channels along the last axis."""
    return is_norm(module) and not isinstance(module, _BatchNorm) and not hasattr(module, "num_groups")


def _group(
    name: str, module: nn.Module, flow: Flow, rules: Mapping[str, Rule], why: Mapping[nn.Module, str]
) -> Group | str:
    reason = _refusal(module, flow, why)
    if reason:
        return reason
    value = flow.call_of(module).outputs[0]
    axis = _axis(module)
    if not is_layer(module) and len(parameters_of(module)["weight"]) != flow.shapes[value][axis]:
        return "its channels are not along the axis expected"
    carried = carry(flow, value, axis, rules)
    readers = [reader for each in carried.arrivals if (reader := _reader(each, flow, why, carried))]
    free = torch.zeros(flow.shapes[value][axis], dtype=torch.bool)
    for reader in readers:
        free[reader.columns] = True
    free[list(carried.pinned)] = False
    reasons = list(dict.fromkeys(carried.pinned.values()))
    if not free.any():
        return reasons[0] if reasons else "no layer reads it"
    kept = tuple(reader for reader in readers if bool(free[reader.columns].any()))
    return Group(name, module, kept, free, "; ".join(reasons), carried)


def _refusal(module: nn.Module, flow: Flow, why: Mapping[nn.Module, str]) -> str:
    """Return why the parameters of `module` cannot be rewritten; empty where they can."""
    if flow.calls[module] != 1:
        return f"it is called {flow.calls[module]} times" if flow.calls[module] else "the example does not reach it"
    if not is_layer(module) and norm_offset(module) is None:
        return "it has no scale per channel"
    if any(id(parameter) in flow.bare for parameter in module.parameters()):
        return "its weight is read outside of it"
    return why.get(module, "")


def _reader(arrival: Arrival, flow: Flow, why: Mapping[nn.Module, str], carried: Carried) -> Reader | None:
    """Return the layer that channels arrive at; None, and the channels pinned, where it cannot be rewritten."""
    module = arrival.step.module
    assert module is not None
    if not is_layer(module):
        carried.pin(arrival.columns, f"'{arrival.step.name}' ({type(module).__name__}) reads it")
        return None
    reason = _refusal(module, flow, why)
    if reason or len(arrival.columns) != inputs_of(module):
        carried.pin(arrival.columns, f"'{arrival.step.name}' reads it, and {reason or 'has another shape'}")
        return None
    return Reader(arrival.step.name, module, arrival.columns)


def _axis(module: nn.Module) -> int:
    """Return the axis of the output that counts channels."""
    if isinstance(module, _BatchNorm):
        return 1
    return -1 - len(module.kernel_size) if isinstance(module, _ConvNd) else -1
