"""Which layers write into one residual stream, which read it, and may the stream be turned?

The stream is every tensor that additions, views and numbers join to the output of an embedding. It can be rotated when
everything that makes it is an embedding or a linear layer, everything that reads it is a norm that a rotation
passes through (an RMSNorm without a scale), and what such norms give goes into linear layers and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from geoquant.models.sites import layer_type
from geoquant.transforms.carrying import VIEWS, carry
from geoquant.transforms.recording import Flow, Ref, Step
from geoquant.transforms.scaling import inputs_of, is_layer, norm_offset

_SUMS = ("add", "add_", "sub", "sub_")
_NUMBERS = ("mul", "mul_", "div", "div_")
_SAME = 1e-3


@dataclass
class Stream:
    """One residual stream.

    Attributes:
        width: channels.
        writers: embeddings and layers whose outputs it is made of.
        norms: what reads it, each with the layers that read the norm.
        obstacle: why it cannot be rotated; empty where it can.
    """

    width: int
    writers: dict[str, nn.Module] = field(default_factory=dict)
    norms: dict[str, tuple[nn.Module, dict[str, nn.Module]]] = field(default_factory=dict)
    obstacle: str = ""

    @property
    def readers(self) -> dict[str, nn.Module]:
        """All layers that read the stream through a norm."""
        return {name: module for _, found in self.norms.values() for name, module in found.items()}


def find_stream(flow: Flow, start: Step, why: Mapping[nn.Module, str]) -> Stream:
    """Follow the stream that the call `start` of an embedding begins.

    Args:
        flow: a recording of the model.
        start: where to begin.
        why: layers that cannot be rewritten, with the reason.
    """
    stream = Stream(flow.shapes[start.outputs[0]][-1])
    todo, seen = [start.outputs[0]], set[int]()
    while todo and not stream.obstacle:
        value = todo.pop()
        if value in seen:
            continue
        seen.add(value)
        shape = flow.shapes[value]
        if not shape or shape[-1] != stream.width:
            stream.obstacle = f"it is joined by a tensor of shape {shape}"
        elif value in flow.returned:
            stream.obstacle = "the model returns it"
        elif value in flow.rewritten:
            stream.obstacle = "its memory is written in place under another name"
        else:
            todo += _made(flow, value, stream, why)
            for index in flow.readers.get(value, ()):
                todo += _read(flow, flow.steps[index], value, stream, why)
    return stream


def _made(flow: Flow, value: int, stream: Stream, why: Mapping[nn.Module, str]) -> list[int]:
    """Note what makes `value`; return the values of the stream that it is made of."""
    step = flow.made_by(value)
    if step is None:
        stream.obstacle = "a tensor from outside is added to it"
        return []
    if step.module is None:
        joined = _joined(flow, step, value)
        if joined is None:
            stream.obstacle = f"'{step.name}' writes into it"
        return joined or []
    if not _turns(step.module):
        stream.obstacle = f"'{step.name}' ({type(step.module).__name__}) writes into it"
    else:
        stream.obstacle = _refusal(flow, step, why)
    stream.writers[step.name] = step.module
    return []


def _read(flow: Flow, step: Step, value: int, stream: Stream, why: Mapping[nn.Module, str]) -> list[int]:
    """Note what a step makes of the stream; return what is stream again."""
    if step.module is not None:
        _read_by_norm(flow, step, stream, why)
        return []
    joined = [made for made in step.outputs if value in (_joined(flow, step, made) or ())]
    if not joined:
        stream.obstacle = f"'{step.name}' reads it"
    return joined


def _joined(flow: Flow, step: Step, value: int) -> list[int] | None:
    """Return which inputs of an operation its output `value` is a plain sum, multiple or view of; None if of none."""
    name = step.function._schema.name.removeprefix("aten::")
    tensors = [leaf.value for leaf in tree_leaves((step.args, step.kwargs)) if isinstance(leaf, Ref)]
    vectors = [each for each in tensors if flow.shapes[each]]
    if name in _SUMS and tensors == vectors and len(step.args) == 2 and all(isinstance(a, Ref) for a in step.args):
        return vectors
    if name in _NUMBERS and len(vectors) == 1 and isinstance(step.args[0], Ref) and step.args[0].value in vectors:
        return vectors
    if name in VIEWS and len(tensors) == 1 and _keeps_channels(flow, step, value):
        return tensors
    return None


def _keeps_channels(flow: Flow, step: Step, value: int) -> bool:
    """Whether a view leaves every vector along the last axis whole and in order."""
    shape = flow.shapes[step.inputs[0]]
    if not shape:
        return False
    labels = torch.arange(shape[-1]).expand(shape)
    name = step.function._schema.name.removeprefix("aten::")
    found = VIEWS[name](step, 0, labels, flow)
    moved = found[step.outputs.index(value)] if found else None
    return moved is not None and moved.shape[-1:] == shape[-1:] and bool((moved == labels.flatten(0, -2)[:1]).all())


def _read_by_norm(flow: Flow, step: Step, stream: Stream, why: Mapping[nn.Module, str]) -> None:
    norm = step.module
    assert norm is not None
    if is_layer(norm):
        stream.obstacle = f"'{step.name}' reads it without a norm before"
    elif len(step.inputs) != 1 or flow.calls[norm] != 1 or not lets_rotations_through(norm, stream.width):
        kind = type(norm).__name__
        stream.obstacle = f"'{step.name}' ({kind}) reads it, and a rotation does not pass through it"
    if stream.obstacle:
        return
    carried = carry(flow, step.outputs[0], -1, VIEWS)
    readers = {each.step.name: each for each in carried.arrivals}
    whole = torch.arange(stream.width)
    for name, arrival in readers.items():
        module = arrival.step.module
        assert module is not None
        if layer_type(module) is None or not is_layer(module) or hasattr(module, "kernel_size"):
            stream.obstacle = f"'{name}' ({type(module).__name__}) reads it"
        elif not torch.equal(arrival.columns, whole) or inputs_of(module) != stream.width:
            stream.obstacle = f"'{name}' reads it in another order"
        else:
            stream.obstacle = stream.obstacle or _refusal(flow, arrival.step, why)
    stream.obstacle = stream.obstacle or next(iter(carried.pinned.values()), "") or why.get(norm, "")
    modules = {name: arrival.step.module for name, arrival in readers.items() if arrival.step.module is not None}
    stream.norms[step.name] = (norm, modules)


def lets_rotations_through(norm: nn.Module, width: int) -> bool:
    """Whether norm(x Q) = norm(x) Q for orthogonal Q once the scale is absorbed, as for an RMSNorm; found by trying.

    >>> lets_rotations_through(nn.RMSNorm(8), 8), lets_rotations_through(nn.LayerNorm(8), 8)
    (True, False)
    """
    generator = torch.Generator().manual_seed(0)
    like = next(iter(norm.parameters()), torch.zeros(()))
    offset = norm_offset(norm)
    neutral = {} if offset is None else {"weight": torch.full_like(like, 1 - offset)}
    x = torch.randn(3, width, generator=generator, dtype=torch.float64)
    q, _ = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))

    def answer(rows: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.as_tensor(torch.func.functional_call(norm, neutral, (rows.to(like),))).double().cpu()

    try:
        turned, wanted = answer(x @ q), answer(x) @ q
    except Exception:  # a norm that takes more than one tensor, or another shape
        return False
    tolerance = max(_SAME, 10 * float(torch.finfo(like.dtype).eps))
    return bool((turned - wanted).abs().max() <= tolerance * wanted.abs().max())


def _turns(module: nn.Module) -> bool:
    """Whether the outputs of `module` can be rotated: linear layers and plain embeddings."""
    if isinstance(module, nn.Embedding):
        return module.max_norm is None
    return is_layer(module) and not hasattr(module, "kernel_size")


def _refusal(flow: Flow, step: Step, why: Mapping[nn.Module, str]) -> str:
    """Return why a writer or reader cannot be rewritten; empty where it can."""
    module = step.module
    assert module is not None
    reason = why.get(module, "")
    if flow.calls[module] != 1:
        reason = f"it is called {flow.calls[module]} times"
    elif any(id(parameter) in flow.bare for parameter in module.parameters()):
        reason = "its weight is read outside of it"
    return f"'{step.name}' cannot be rewritten, as {reason}" if reason else ""
