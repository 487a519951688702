"""Which additions, softmaxes and matrix products of activations does a model compute outside of layers?

They are no modules, so they are found by symbolic tracing (torch.fx) and named after the module whose forward computes
them: ``layer1.0.add:0`` and ``layer1.0.add:1`` are the operands of the first addition in ``layer1.0``,
``attn.matmul_1:0`` is the first operand of the second product. A model whose forward branches on data cannot be
traced; of these nothing is found then. What torch computes inside its own modules (`nn.MultiheadAttention`) is not
seen. The keys and values that a language model keeps (`geoquant.models.key_values`) come last.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from geoquant.models.batchnorm import symbolic_graph
from geoquant.models.key_values import cache_sites

# Kinds of operations: functions as callers see them, tensor methods as torch dispatches them, operands that count.
KINDS: dict[str, tuple[int, tuple[Any, ...]]] = {
    "add": (2, (operator.add, operator.iadd, torch.add, "add", "add_")),
    "matmul": (2, (operator.matmul, torch.matmul, torch.bmm, "matmul", "bmm")),
    "softmax": (1, (torch.softmax, nn.functional.softmax, "softmax")),
    "attention": (3, (nn.functional.scaled_dot_product_attention,)),
}
FUNCTIONS: dict[Any, str] = {each: kind for kind, (_, functions) in KINDS.items() for each in functions}
# As `__torch_function__` names them.
FUNCTIONS |= {Tensor.add: "add", Tensor.add_: "add", Tensor.__add__: "add", Tensor.__iadd__: "add"}
FUNCTIONS |= {Tensor.__radd__: "add", Tensor.matmul: "matmul", Tensor.__matmul__: "matmul", Tensor.bmm: "matmul"}
FUNCTIONS |= {Tensor.softmax: "softmax"}

_SIZES = ("size", "dim", "numel", "item", "tolist", "stride", "new_zeros")


def operation_name(owner: str, kind: str, place: int) -> str:
    """Return the name of the operation of one kind at one place of a module's forward.

    >>> operation_name("layer1.0", "add", 0), operation_name("", "add", 2)
    ('layer1.0.add', 'add_2')
    """
    return f"{owner}{'.' if owner else ''}{kind}{f'_{place}' if place else ''}"


def find_operations(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the operands in the order of execution, then those of the cache, as far as they are seen.

    >>> class Residual(nn.Module):
    ...     def forward(self, x):
    ...         return (x + torch.relu(x)) + 1.0
    >>> find_operations(nn.Sequential(Residual()))
    ('0.add:0', '0.add:1')
    """
    graph = symbolic_graph(model)
    operands = () if graph is None else tuple(dict.fromkeys(_operands(graph, model)))
    return (*operands, *cache_sites(model))


def is_traceable(model: nn.Module) -> bool:
    """Whether `find_operations` can look inside.

    >>> class Branching(nn.Module):
    ...     def forward(self, x):
    ...         return x if x.sum() > 0 else -x
    >>> is_traceable(Branching())
    False
    """
    return symbolic_graph(model) is not None


def _operands(graph: fx.Graph, model: nn.Module) -> Iterator[str]:
    places: dict[tuple[str, str], int] = {}
    called: dict[str, int] = {}
    plain: set[fx.Node] = set()  # sizes and other numbers
    for node in graph.nodes:
        if _is_plain(node, plain):
            plain.add(node)
            continue
        if node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), nn.Softmax):
            yield f"{node.target}:0"
            continue
        kind = FUNCTIONS.get(node.target) if node.op in ("call_function", "call_method") else None
        if kind is None:
            continue
        owner, call = _owner(node)
        if called.setdefault(owner, call) != call:  # the same module again: its operations begin anew
            called[owner] = call
            places = {key: place for key, place in places.items() if key[0] != owner}
        place = places.get((owner, kind), 0)
        places[owner, kind] = place + 1
        count = KINDS[kind][0]
        values = [arg for arg in node.args[:count] if isinstance(arg, fx.Node) and arg not in plain]
        if len(values) == count:
            yield from (f"{operation_name(owner, kind, place)}:{index}" for index in range(count))


def _is_plain(node: fx.Node, plain: set[fx.Node]) -> bool:
    if node.op == "call_method" and node.target in _SIZES:
        return True
    if node.target is getattr and node.args[1] == "shape":
        return True
    return bool(node.all_input_nodes) and node.op == "call_function" and all(n in plain for n in node.all_input_nodes)


def _owner(node: fx.Node) -> tuple[str, int]:
    """Return the module whose forward computes `node`, and which of its calls it was."""
    stack = node.meta.get("nn_module_stack") or {}
    if not stack:
        return "", 0
    key, value = next(reversed(stack.items()))
    path = value[0] if isinstance(value, tuple) else key
    _, _, call = str(key).partition("@")
    return str(path), int(call or 0)
