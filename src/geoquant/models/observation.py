"""What happens inside one forward of a model: which module calls, in which order, at what cost?

Every module call is numbered, every tensor operation is seen (below autograd, by its memory), and FLOPs
are counted. From this follows when each weight is first read, and which calls may be replaced by a
recording of their output: those whose whole effect is that output. A call that changes attributes of its own
module has another effect, and so has one whose inner tensors are read later. Effects on other Python objects
are not seen.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from geoquant.models.calling import Forward, predict

NOWHERE = -1


@dataclass
class Call:
    """One call of one module.

    Attributes:
        module: what was called.
        parent: index of the call around it, or `NOWHERE`.
        start: tick at which it began.
        end: tick at which it ended.
        after: index of the first call that is not inside it.
        flops: spent inside, nested calls included.
        replayable: whether returning the recorded output has the same effect as calling again.
        mutated_later: whether its output is written in place after it ended.
        outputs: identities of the memory of its outputs.
    """

    module: nn.Module
    parent: int
    start: int
    end: int = 0
    after: int = 0
    flops: float = 0.0
    replayable: bool = True
    mutated_later: bool = False
    outputs: frozenset[int] = frozenset()


@dataclass
class Observation:
    """All module calls of one forward in order of their start, and when each tensor was first read."""

    calls: list[Call] = field(default_factory=list)
    first_use: dict[int, int] = field(default_factory=dict)
    touched_by: dict[int, set[int]] = field(default_factory=dict)
    flops: float = 0.0

    def first_read(self, tensor: Tensor) -> int | None:
        """Return the tick at which the memory of `tensor` was first read, or None if it never was."""
        identity = storage_identity(tensor)
        return None if identity is None else self.first_use.get(identity)

    def replaced_before(self, tick: int) -> list[int]:
        """Return the outermost calls that can be replaced by recordings and ended before `tick`."""
        found, index = [], 0
        while index < len(self.calls) and self.calls[index].start < tick:
            call = self.calls[index]
            if call.replayable and call.end < tick:
                found.append(index)
                index = call.after
            else:
                index += 1
        return found


def observe(model: nn.Module, batch: Any, forward: Forward | None = None) -> Observation:
    """Run one forward without autograd and return what was seen; weights and modes stay as they are.

    >>> seen = observe(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.zeros(2, 4))
    >>> [(type(call.module).__name__, call.flops) for call in seen.calls]
    [('Sequential', 48.0), ('Linear', 48.0), ('ReLU', 0.0)]
    """
    counter = FlopCounterMode(display=False, custom_mapping=_FUSED_FLOPS)
    watcher = _Watcher(counter)
    with torch.no_grad(), intercepted(model, watcher.wrap), counter, watcher:
        predict(model, batch, forward)
    return watcher.result()


def storage_identity(tensor: Tensor) -> int | None:
    """Return a number for the memory of `tensor`, shared by its views; None where it has no plain memory."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return None


Wrap = Callable[[nn.Module, Callable[..., Any]], Callable[..., Any]]


@contextmanager
def intercepted(model: nn.Module, wrap: Wrap) -> Iterator[None]:
    """Replace ``forward`` on every module instance by ``wrap(module, forward)`` for a while.

    Hooks cannot skip a call; a replaced forward can. User hooks still run around it.
    """
    with ExitStack() as restore:
        for module in model.modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            original = module.forward
            previous = module.__dict__.get("forward")
            module.__dict__["forward"] = functools.wraps(original)(wrap(module, original))
            restore.callback(_reinstate, module, previous)
        yield


def _reinstate(module: nn.Module, previous: Any) -> None:
    if previous is None:
        del module.__dict__["forward"]
    else:
        module.__dict__["forward"] = previous


def is_recordable(output: Any) -> bool:
    """Whether an output is made of tensors, None and plain containers only, with at least one tensor.

    >>> is_recordable((torch.zeros(1), None)), is_recordable("text"), is_recordable(None)
    (True, False, False)
    """
    leaves = _leaves(output)
    return leaves is not None and any(isinstance(leaf, Tensor) for leaf in leaves)


def _leaves(output: Any) -> list[Any] | None:
    """Flatten plain containers; None when something else than tensors is in them."""
    if output is None or isinstance(output, Tensor):
        return [output]
    if type(output) in (tuple, list, dict):
        parts = [_leaves(part) for part in (output.values() if isinstance(output, dict) else output)]
        return None if any(part is None for part in parts) else [leaf for part in parts for leaf in part or ()]
    return None


class _Watcher(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every tensor operation and every module call of one forward.

    Weak references keep each seen piece of memory from giving its identity to another while we watch.
    """

    def __init__(self, counter: FlopCounterMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._counter = counter
        self._tick = 0
        self._seen = Observation()
        self._open: list[int] = []
        self._attributes: list[list[Any]] = []
        self._creator: dict[int, int] = {}
        self._returned_by: dict[int, list[int]] = {}
        self._kept: dict[int, StorageWeakRef] = {}

    def result(self) -> Observation:
        self._seen.flops = float(self._counter.get_total_flops())
        return self._seen

    def wrap(self, module: nn.Module, original: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            call = self._begin(module)
            output = original(*args, **kwargs)
            self._end(call, output)
            return output

        return watched

    def _begin(self, module: nn.Module) -> Call:
        self._tick += 1
        call = Call(module, self._open[-1] if self._open else NOWHERE, self._tick)
        call.flops = -float(self._counter.get_total_flops())
        self._open.append(len(self._seen.calls))
        self._attributes.append(_attributes(module))
        self._seen.calls.append(call)
        return call

    def _end(self, call: Call, output: Any) -> None:
        self._note_state(call)
        index = self._open.pop()
        self._tick += 1
        call.end, call.after = self._tick, len(self._seen.calls)
        call.flops += float(self._counter.get_total_flops())
        tensors = [leaf for leaf in _leaves(output) or () if isinstance(leaf, Tensor)]
        identities = [self._identify(tensor) for tensor in tensors]
        call.outputs = frozenset(identity for identity in identities if identity is not None)
        born_inside = all(identity is not None and index in self._births(identity) for identity in identities)
        call.replayable &= is_recordable(output) and born_inside and len(call.outputs) == len(identities)
        for identity in call.outputs:
            self._returned_by.setdefault(identity, []).append(index)

    def _note_state(self, call: Call) -> None:
        """Keep the call, and those around it, from being replaced when its module remembers something new."""
        before, now = self._attributes.pop(), _attributes(call.module)
        if len(before) != len(now) or any(old is not new for old, new in zip(before, now, strict=True)):
            for index in self._open:
                self._seen.calls[index].replayable = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self._tick += 1
        for tensor in (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)):
            self._touch(tensor)
        for tensor in written(func, args, kwargs):
            self._write(tensor)
        result = func(*args, **kwargs)
        if func is torch.ops.aten.lift_fresh.default:  # how a constant made by torch.tensor shows up
            self._seen.first_use.pop(self._identify(args[0]) or NOWHERE, None)
        for tensor in (leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)):
            identity = self._identify(tensor)
            if identity is not None and identity not in self._seen.first_use:
                self._creator.setdefault(identity, self._open[-1] if self._open else NOWHERE)
        return result

    def _touch(self, tensor: Tensor) -> None:
        """Note a use; a call whose inner tensor is used after its end, and is no output, cannot be replaced."""
        identity = self._identify(tensor)
        if identity is None:
            return
        self._seen.touched_by.setdefault(identity, set()).update(self._open[-1:] or [NOWHERE])
        if identity not in self._creator:
            self._seen.first_use.setdefault(identity, self._tick)
        for index in self._births(identity):
            call = self._seen.calls[index]
            if call.end and identity not in call.outputs:
                call.replayable = False

    def _write(self, tensor: Tensor) -> None:
        """Note a write: an effect of every open call the memory is foreign to, and a change of ended outputs."""
        identity = self._identify(tensor)
        births = set() if identity is None else set(self._births(identity))
        for index in self._open:
            if index not in births:
                self._seen.calls[index].replayable = False
        for index in self._returned_by.get(identity, ()) if identity is not None else ():
            self._seen.calls[index].mutated_later = True

    def _identify(self, tensor: Tensor) -> int | None:
        identity = storage_identity(tensor)
        if identity is not None and identity not in self._kept:
            self._kept[identity] = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        return identity

    def _births(self, identity: int) -> Iterator[int]:
        """Yield the calls inside which the memory was made, innermost first."""
        index = self._creator.get(identity, NOWHERE)
        while index != NOWHERE:
            yield index
            index = self._seen.calls[index].parent


def _attributes(module: nn.Module) -> list[Any]:
    """List a module's attributes and what its plain containers hold, to be compared by identity."""
    found: list[Any] = []
    for key, value in module.__dict__.items():
        found += [key, value]
        if isinstance(value, (list, tuple, set)):
            found += value
        elif isinstance(value, dict):
            found += value.values()
    return found


def written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Yield the arguments that an operation writes, by its schema; cutting a graph writes no number."""
    if func is torch.ops.aten.detach_.default:
        return
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = args[position] if position < len(args) else kwargs.get(argument.name)
        yield from (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


Shape = tuple[int, ...]


def _cpu_attention_flops(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Two batched products: (…, T, d)·(…, d, S) and (…, T, S)·(…, S, e), 2 FLOPs per multiply-add."""
    return 2 * math.prod(query) * key[-2] + 2 * math.prod(query[:-1]) * key[-2] * value[-1]


def _fused_attention_flops(query: Shape, key: Shape, value: Shape, width: int, *_: Any, **__: Any) -> int:
    """Projections of query, key, value and output, and the two products of attention."""
    batch, tokens = math.prod(query[:-2]), query[-2]
    projections = 2 * batch * width * width * (2 * tokens + key[-2] + value[-2])
    return projections + 4 * batch * tokens * key[-2] * width


def _fused_encoder_flops(source: Shape, width: int, *rest: Any, **_: Any) -> int:
    """One encoder layer: attention, and a feed-forward whose first weight is (hidden, width)."""
    hidden: int = rest[_FFN_WEIGHT - 2][0]
    return _fused_attention_flops(source, source, source, width) + 4 * math.prod(source) * hidden


# Position of the first feed-forward weight among the arguments of the fused encoder layer.
_FFN_WEIGHT = 14

# Operations that torch's own counter does not know (fused inference kernels).
_FUSED_FLOPS: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention_flops,
    torch.ops.aten._native_multi_head_attention: _fused_attention_flops,
    torch.ops.aten._transformer_encoder_layer_fwd: _fused_encoder_flops,
}
