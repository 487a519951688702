"""How can the operands of an addition be rounded, when no module computes it?

While the model runs, a `TorchFunctionMode` sees every torch function that its forwards call. Hooks keep track of the
module whose forward is running, so that an operation has the name that `geoquant.models.find_operations` gave it: its
module, its kind, and how many of the kind came before in the same call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from geoquant.models.operations import FUNCTIONS, KINDS, operation_name

Rounders = Mapping[str, Callable[..., Any]]


@dataclass
class _Frame:
    """One running call of one module."""

    key: object
    path: str
    rounders: Rounders
    places: dict[str, int] = field(default_factory=dict)


class _Running(threading.local):
    """What runs in this thread: the calls, innermost last, and the mode that watches them."""

    def __init__(self) -> None:
        self.frames: list[_Frame] = []
        self.mode: _Mode | None = None


_RUNNING = _Running()


class _Mode(TorchFunctionMode):
    """Rounds the operands of the planned operations of the innermost call."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        kind = FUNCTIONS.get(func)
        if kind is None or not _RUNNING.frames or not _RUNNING.frames[-1].rounders:
            return func(*args, **kwargs)
        frame, count = _RUNNING.frames[-1], KINDS[kind][0]
        place = frame.places.get(kind, 0)
        frame.places[kind] = place + 1
        name = operation_name(frame.path, kind, place)
        operands = [self._rounded(frame, f"{name}:{index}", each) for index, each in enumerate(args[:count])]
        return _call(func, args, [*operands, *args[count:]], kwargs)

    def _rounded(self, frame: _Frame, name: str, value: Any) -> Any:
        rounder = frame.rounders.get(name)
        return value if rounder is None or not isinstance(value, Tensor) else rounder(value)


_IN_PLACE = (Tensor.add_, Tensor.__iadd__)


def _call(func: Any, old: tuple[Any, ...], new: list[Any], kwargs: dict[str, Any]) -> Any:
    """Call with rounded operands; an operation in place still writes where the caller wants the result."""
    if func in _IN_PLACE and new[0] is not old[0]:
        return old[0].copy_(torch.add(*new, **kwargs))
    return func(*new, **kwargs)


class _Enter:
    def __init__(self, key: object, path: str, rounders: Rounders) -> None:
        self.key, self.path, self.rounders = key, path, rounders

    def __call__(self, *_: Any) -> None:
        _RUNNING.frames.append(_Frame(self.key, self.path, self.rounders))
        if _RUNNING.mode is None:
            _RUNNING.mode = _Mode()
            _RUNNING.mode.__enter__()  # type: ignore[no-untyped-call]


class _Leave:
    def __init__(self, key: object) -> None:
        self.key = key

    def __call__(self, *_: Any) -> None:
        # A hook that raised before `_Enter` ran leaves another call's frame on top.
        if _RUNNING.frames and _RUNNING.frames[-1].key is self.key:
            _RUNNING.frames.pop()
        if not _RUNNING.frames and _RUNNING.mode is not None:
            _RUNNING.mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            _RUNNING.mode = None


def watch_operations_(model: nn.Module, rounders: Rounders) -> list[RemovableHandle]:
    """Let `model` pass the named operands through their rounders (name → tensor to tensor); return the handles."""
    handles: list[RemovableHandle] = []
    for path, module in model.named_modules():
        if _computes_nothing(module):
            continue
        own = {name: each for name, each in rounders.items() if name.rpartition(":")[0].rpartition(".")[0] == path}
        softmax = rounders.get(f"{path}:0")
        if softmax is not None:
            own[operation_name(path, "softmax", 0) + ":0"] = softmax
        key: list[object] = []  # a list, so that a deep copy of the model gets a key of its own
        handles.append(module.register_forward_pre_hook(_Enter(key, path, own), prepend=True))
        handles.append(module.register_forward_hook(_Leave(key), always_call=True))
    return handles


@contextmanager
def unwatched() -> Iterator[None]:
    """Let what is computed meanwhile pass: additions inside a layer's own rounder are none of the model's."""
    _RUNNING.frames.append(_Frame(None, "", {}))
    try:
        yield
    finally:
        _RUNNING.frames.pop()


def rounders_of_operation(hook: object) -> list[Callable[..., Any]]:
    """Return the rounders that a hook of `watch_operations_` holds; none for any other hook."""
    return list(hook.rounders.values()) if isinstance(hook, _Enter) else []


def _computes_nothing(module: nn.Module) -> bool:
    """Whether a module computes no operation of interest itself: torch's own layers, softmax apart."""
    leaf = type(module).__module__.startswith("torch.nn") and not any(module.children())
    return leaf and not isinstance(module, nn.Softmax)
