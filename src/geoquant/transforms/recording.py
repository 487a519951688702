"""Which operations of one forward read which tensor, and where does each tensor come from?

One example runs through the model while every layer and norm (by its call) and every other tensor operation (below
autograd) is written down with the tensors that it read and made. That needs no symbolic tracing, so it works for
any forward; it speaks of the path that the example takes, and not of what other inputs would do. Tensors that live on
in objects other than plain containers (caches) are not taken for outputs of the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from geoquant.errors import ModelError
from geoquant.models import Forward, evaluating, predict
from geoquant.models.calling import tensors_in
from geoquant.models.observation import intercepted, storage_identity, written
from geoquant.models.sites import layer_type


@dataclass(frozen=True)
class Ref:
    """Stands for a tensor among the arguments of a step."""

    value: int


@dataclass(frozen=True, eq=False)
class Step:
    """One call of a layer or norm, or one tensor operation outside of these.

    Attributes:
        name: of the layer; for an operation, the module around it and its own name.
        module: the layer or norm; None for an operation.
        function: the operation; None for a layer.
        args: positional arguments, tensors replaced by `Ref`.
        kwargs: named arguments, likewise.
        inputs: values read.
        outputs: values made.
    """

    name: str
    module: nn.Module | None
    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass
class Flow:
    """All steps of one forward in order; values are numbered tensors.

    Attributes:
        steps: in the order of execution.
        shapes: of every value.
        maker: the step that made a value; values that came from outside have none.
        readers: the steps that read a value, in order.
        returned: values that the model returned.
        rewritten: values that somebody wrote into under another name.
        bare: identities of parameters that an operation outside of layers and norms read.
        calls: how often each layer or norm was called.
    """

    steps: list[Step] = field(default_factory=list)
    shapes: dict[int, tuple[int, ...]] = field(default_factory=dict)
    maker: dict[int, int] = field(default_factory=dict)
    readers: dict[int, list[int]] = field(default_factory=dict)
    returned: set[int] = field(default_factory=set)
    rewritten: set[int] = field(default_factory=set)
    bare: set[int] = field(default_factory=set)
    calls: Counter[nn.Module] = field(default_factory=Counter)

    def call_of(self, module: nn.Module) -> Step:
        """Return the first call of a layer or norm that was called."""
        return next(step for step in self.steps if step.module is module)

    def made_by(self, value: int) -> Step | None:
        """Return the step that made `value`; None where it came from outside."""
        index = self.maker.get(value)
        return None if index is None else self.steps[index]


def record(model: nn.Module, example: Any, forward: Forward | None = None) -> Flow:
    """Run `model` once on `example` in eval mode and return what happened; the model stays as it is.

    Raises:
        ModelError: the model cannot be called, or is compiled.

    >>> flow = record(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), torch.zeros(4, 2))
    >>> [(step.name, step.inputs, step.outputs) for step in flow.steps]
    [('0', (0,), (1,)), ('1.relu', (1,), (2,)), ('2', (2,), (3,))]
    """
    if any(hasattr(module, "_orig_mod") for module in model.modules()):
        raise ModelError("a compiled model cannot be watched; give the plain model, and compile it afterwards")
    recorder = _Recorder(model)
    with evaluating(model), torch.no_grad(), intercepted(model, recorder.wrap), recorder:
        logits = predict(model, example, forward)
    recorder.finish(logits)
    return recorder.flow


def is_norm(module: nn.Module) -> bool:
    """Whether `module` is called a norm and holds nothing but its own parameters.

    >>> is_norm(nn.LayerNorm(2)), is_norm(nn.Linear(2, 2))
    (True, False)
    """
    named = type(module).__name__.lower().endswith(("norm", "norm1d", "norm2d", "norm3d"))
    return (named or isinstance(module, _BatchNorm)) and not any(module.children())


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees the calls of layers and norms as one step each, and the operations outside of them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flow = Flow()
        self._root = model
        self._names = {module: name for name, module in model.named_modules()}
        self._parameters = {id(parameter) for parameter in model.parameters()}
        self._values: MutableMapping[Tensor, list[int]] = WeakTensorKeyDictionary()
        self._sharing: dict[int, set[int]] = {}
        self._kept: dict[int, StorageWeakRef] = {}
        self._stack: list[str] = []
        self._inside = False

    def wrap(self, module: nn.Module, original: Callable[..., Any]) -> Callable[..., Any]:
        whole = layer_type(module) is not None or is_norm(module)
        return self._whole(module, original) if whole else self._around(module, original)

    def finish(self, logits: Tensor) -> None:
        self.flow.returned.add(self._value(logits))

    def _whole(self, module: nn.Module, original: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return original(*args, **kwargs)
            refs = self._refs(args), self._refs(kwargs)
            self._inside = True
            try:
                output = original(*args, **kwargs)
            finally:
                self._inside = False
            self.flow.calls[module] += 1
            made = tuple(self._renamed(tensor) for tensor in tensors_in(output))
            self._add(Step(self._names[module], module, None, *refs, _values(refs), made))
            return output

        return called

    def _around(self, module: nn.Module, original: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return original(*args, **kwargs)
            self._stack.append(self._names[module])
            try:
                output = original(*args, **kwargs)
            finally:
                self._stack.pop()
            if module is self._root:
                self.flow.returned.update(map(self._value, tensors_in(output)))
            return output

        return called

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._inside:
            return func(*args, **kwargs)
        self.flow.bare.update(id(leaf) for leaf in tree_leaves((args, kwargs)) if id(leaf) in self._parameters)
        refs = self._refs(args), self._refs(kwargs)
        targets = list(written(func, args, kwargs))
        result = func(*args, **kwargs)
        for tensor in targets:
            self._note_write(tensor)
        made = tuple(self._renamed(leaf) for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        owner = self._stack[-1] if self._stack else ""
        name = f"{owner}{'.' if owner else ''}{func._schema.name.removeprefix('aten::')}"
        self._add(Step(name, None, func, *refs, _values(refs), made))
        return result

    def _add(self, step: Step) -> None:
        index = len(self.flow.steps)
        self.flow.steps.append(step)
        for value in dict.fromkeys(step.inputs):
            self.flow.readers.setdefault(value, []).append(index)
        for value in step.outputs:
            self.flow.maker[value] = index

    def _refs(self, arguments: Any) -> Any:
        return tree_map(lambda leaf: Ref(self._value(leaf)) if isinstance(leaf, Tensor) else leaf, arguments)

    def _value(self, tensor: Tensor) -> int:
        known = self._values.get(tensor)
        return known[-1] if known else self._renamed(tensor)

    def _renamed(self, tensor: Tensor) -> int:
        """Number the tensor anew: it has just been made, or holds something else than before."""
        value = len(self.flow.shapes)
        self._values.setdefault(tensor, []).append(value)
        self.flow.shapes[value] = tuple(tensor.shape)
        memory = storage_identity(tensor)
        if memory is not None:
            if memory not in self._kept:  # keeps this memory from giving its identity to another
                self._kept[memory] = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
            self._sharing.setdefault(memory, set()).add(value)
        return value

    def _note_write(self, tensor: Tensor) -> None:
        """Mark what else lies in the memory written: views of it, or what it is a view of."""
        memory = storage_identity(tensor)
        sharing = set() if memory is None else self._sharing.get(memory, set())
        self.flow.rewritten.update(sharing.difference(self._values.get(tensor, ())))


def _values(refs: Any) -> tuple[int, ...]:
    return tuple(leaf.value for leaf in tree_leaves(refs) if isinstance(leaf, Ref))
