"""Where do the channels of one tensor go: which layers read them, and what stands in the way?

Every channel gets a number, and the numbers travel with the recorded operations: a view moves them as it moves the
values, attention gives a query what the values' channels held. What may be done to channels decides which operations
let them through: anything linear in each channel alone (`VIEWS`), what mixes tokens but not channels (`LINEAR`), or
what commutes with a positive factor per channel (`HOMOGENEOUS`). Where channels meet anything else they are pinned,
with the reason. Exact for the recorded path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves, tree_map

from geoquant.transforms.recording import Flow, Ref, Step

Rule = Callable[[Step, int, Tensor, Flow], list[Tensor] | None]


@dataclass(frozen=True, eq=False)
class Arrival:
    """Channels that reach a layer.

    Attributes:
        step: the layer's call.
        columns: which channel each input of the layer is, (inputs,).
    """

    step: Step
    columns: Tensor


@dataclass
class Carried:
    """Where channels went.

    Attributes:
        arrivals: layers that read nothing but channels of this tensor, in order.
        pinned: why a channel must stay as it is, by its number.
        blocks: channels that attention mixes over tokens, (heads, channels of a head), of each such product.
    """

    arrivals: list[Arrival] = field(default_factory=list)
    pinned: dict[int, str] = field(default_factory=dict)
    blocks: list[Tensor] = field(default_factory=list)

    def pin(self, labels: Tensor, reason: str) -> None:
        """Hold the channels in `labels` where they are."""
        for channel in labels.flatten().unique().tolist():  # type: ignore[no-untyped-call]
            self.pinned.setdefault(int(channel), reason)


def carry(flow: Flow, value: int, axis: int, rules: Mapping[str, Rule]) -> Carried:
    """Follow the channels along `axis` of `value` through operations that have a rule, to the layers that read them.

    >>> from torch import nn
    >>> from geoquant.transforms.recording import record
    >>> model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 1))
    >>> flow = record(model, torch.zeros(3, 1, 2, 2))
    >>> [each.columns.tolist() for each in carry(flow, 1, 1, HOMOGENEOUS).arrivals]
    [[0, 0, 0, 0, 1, 1, 1, 1]]
    >>> carry(flow, 1, 1, VIEWS).pinned[0]
    "'1.relu' reads it"
    """
    shape = flow.shapes[value]
    labels = torch.arange(shape[axis]).view([-1 if place == axis % len(shape) else 1 for place in range(len(shape))])
    found, passed = Carried(), dict[int, Tensor]()
    todo = [(value, labels.expand(shape))]
    while todo:
        current, labels = todo.pop(0)
        if current in flow.returned:
            found.pin(labels, "the model returns it")
        if current in flow.rewritten:
            found.pin(labels, "its memory is written in place under another name")
        for index in flow.readers.get(current, ()):
            step = flow.steps[index]
            if step.module is not None:
                _arrive(step, labels, found)
                continue
            onward = _pass(flow, step, current, labels, rules, found)
            if onward and index in passed:  # channels meet channels: a product of two, or a sum
                found.pin(torch.cat([labels.flatten(), passed[index].flatten()]), f"'{step.name}' reads it twice")
            elif onward:
                passed[index] = labels
                todo += zip(step.outputs, onward, strict=False)
    return found


def _arrive(step: Step, labels: Tensor, found: Carried) -> None:
    """Note that a layer or norm reads the channels; nothing passes through it."""
    columns = _columns(step, labels) if len(step.inputs) == 1 else None
    if columns is None:
        found.pin(labels, f"'{step.name}' reads it in another shape, or with other inputs")
    else:
        found.arrivals.append(Arrival(step, columns))


def _pass(
    flow: Flow, step: Step, value: int, labels: Tensor, rules: Mapping[str, Rule], found: Carried
) -> list[Tensor] | None:
    """Return the labels of what an operation makes, or pin them."""
    places = [place for place, leaf in enumerate(tree_leaves((step.args, step.kwargs))) if leaf == Ref(value)]
    name = step.function._schema.name.removeprefix("aten::")
    rule = rules.get("attention" if "scaled_dot_product" in name else name)
    carried = rule(step, places[0], labels, flow) if rule is not None and len(places) == 1 else None
    if carried is None:
        found.pin(labels, f"'{step.name}' reads it")
    elif rule in (_attention, _product):
        rows = labels[..., 0, :].reshape(-1, labels.shape[-1])
        found.blocks.append(rows.unique(dim=0))  # type: ignore[no-untyped-call]
    return carried


def _columns(step: Step, labels: Tensor) -> Tensor | None:
    """Return which channel each input of a layer is; None where that depends on the position."""
    axis = labels.dim() - 1
    if isinstance(step.module, _ConvNd):
        axis -= len(step.module.kernel_size)
    elif step.module is not None and type(step.module).__name__.startswith("BatchNorm"):
        axis = 1
    if axis < 0:
        return None
    rows = labels.movedim(axis, 0).flatten(1)
    return rows[:, 0].contiguous() if rows.numel() and bool((rows == rows[:, :1]).all()) else None


def _viewed(step: Step, place: int, labels: Tensor, flow: Flow) -> list[Tensor] | None:
    """Do to the labels what the operation does to the values."""
    leaves = tree_leaves((step.args, step.kwargs))
    if place != 0 or sum(isinstance(leaf, Ref) for leaf in leaves) != 1:
        return None
    args, kwargs = tree_map(
        lambda leaf: labels.contiguous() if isinstance(leaf, Ref) else leaf, (step.args, step.kwargs)
    )
    return [leaf for leaf in tree_leaves(step.function(*args, **kwargs)) if isinstance(leaf, Tensor)]


def _same(step: Step, place: int, labels: Tensor, flow: Flow) -> list[Tensor] | None:
    return [labels] if place == 0 else None


def _joined(step: Step, place: int, labels: Tensor, flow: Flow) -> list[Tensor] | None:
    """A concatenation with nothing, as with an empty cache."""
    others = [flow.shapes[value] for position, value in enumerate(step.inputs) if position != place]
    return [labels] if all(0 in shape for shape in others) else None


def _attention(step: Step, place: int, labels: Tensor, flow: Flow) -> list[Tensor] | None:
    """Fused attention mixes the values (batch, heads, tokens, channels) over tokens."""
    if place != 2 or not _constant(labels, -2):
        return None
    shape = flow.shapes[step.outputs[0]]
    rows = labels[..., :1, :]
    if shape[-3] != labels.shape[-3]:
        rows = rows.repeat_interleave(shape[-3] // labels.shape[-3], -3)
    return [rows.expand(shape)]


def _product(step: Step, place: int, labels: Tensor, flow: Flow) -> list[Tensor] | None:
    """A product mixes the rows of its right factor; the columns stay apart."""
    if place != 1 or not _constant(labels, -2):
        return None
    return [labels[..., :1, :].expand(flow.shapes[step.outputs[0]])]


def _times(step: Step, place: int, labels: Tensor, flow: Flow) -> list[Tensor] | None:
    shape = flow.shapes[step.outputs[0]]
    return [labels.expand(shape)] if place == 0 or step.function._schema.name == "aten::mul" else None


def _pooled(step: Step, place: int, labels: Tensor, flow: Flow) -> list[Tensor] | None:
    """Pooling over the last two axes, on which each channel stays by itself."""
    if place != 0 or not (_constant(labels, -1) and _constant(labels, -2)):
        return None
    return [labels[..., :1, :1].expand(flow.shapes[step.outputs[0]])]


def _averaged(step: Step, place: int, labels: Tensor, flow: Flow) -> list[Tensor] | None:
    """An average over positions of one and the same channel."""
    axes = step.args[1] if len(step.args) > 1 else None
    if not axes:
        return None
    keep = bool(step.args[2]) if len(step.args) > 2 else False
    low, high = labels.amin(axes, keep), labels.amax(axes, keep)
    return [low] if torch.equal(low, high) else None


def _constant(labels: Tensor, axis: int) -> bool:
    return bool((labels == labels.narrow(axis, 0, 1)).all())


_MOVES = (
    *("view", "_unsafe_view", "reshape", "_reshape_alias", "transpose", "permute", "t", "slice", "select", "expand"),
    *("squeeze", "unsqueeze", "split", "split_with_sizes", "unsafe_split", "unbind", "flip", "roll", "repeat"),
)
VIEWS: dict[str, Rule] = {
    **dict.fromkeys(_MOVES, _viewed),
    **dict.fromkeys(("clone", "alias", "detach", "_to_copy", "contiguous"), _same),
}
LINEAR: dict[str, Rule] = {**VIEWS, "cat": _joined, "attention": _attention, "bmm": _product, "mm": _product}
HOMOGENEOUS: dict[str, Rule] = {
    **LINEAR,
    **dict.fromkeys(("relu", "relu_", "leaky_relu", "leaky_relu_", "neg"), _same),
    **dict.fromkeys(("mul", "div"), _times),
    **dict.fromkeys(("max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d"), _pooled),
    "mean": _averaged,
}
