"""Which operations does a network perform, in which order, on which stored tensors?

`torch.export` writes any model down in one vocabulary (ATen operations, in-place updates removed), whether its author
used modules, functions or methods. Bounds interpret that list with values of their own: functionals, pairs of
zonotopes. The float and the quantized model must be the same list; a quantized model that performs other operations
(an activation quantizer, say) is refused, since a bound that skipped them would be false.

Where the answer stops: Python control flow that depends on the values of tensors cannot be exported. The graph is
specialised to the shape of the example.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from geoquant.errors import ModelError


@dataclass(frozen=True)
class Constant:
    """A value that does not depend on the input: one for the float model and one for the quantized model."""

    exact: Any
    stored: Any

    @property
    def same(self) -> bool:
        """Whether both models hold the same value."""
        if self.exact is self.stored:
            return True
        if isinstance(self.exact, Tensor):
            return torch.equal(self.exact, self.stored)
        return bool(self.exact == self.stored)


@dataclass(frozen=True)
class Graph:
    """The operations of a model, and the two tables of tensors that it runs on.

    Attributes:
        nodes: operations in order of execution.
        input: name of the node that stands for the input.
        output: name of the node whose value is returned.
        constants: node name of a parameter or buffer → its two values, floating ones as float64.
        layers: node name → name of the layer that owns its first parameter ("" for none).
    """

    nodes: tuple[fx.Node, ...]
    input: str
    output: str
    constants: Mapping[str, Constant]
    layers: Mapping[str, str]

    def label(self, node: fx.Node) -> str:
        """Name a node for a person: the layer's name, or the node's own, with the operation."""
        layer = self.layers.get(node.name, "")
        return layer or f"{node.name} ({operation(node)})"


def operation(node: fx.Node) -> str:
    """Return the bare name of a node's operation: ``aten.relu_.default`` is ``relu``."""
    target = node.target
    if target is operator.getitem:
        return "getitem"
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.partition("::")[2].rstrip("_")
    return getattr(target, "__name__", str(target))


def trace_pair(model: nn.Module, quantized: nn.Module, example: Tensor) -> Graph:
    """Trace two models of the same structure into one graph, up to their first output.

    Args:
        model: the float model, in eval mode.
        quantized: the same model with other weights, in eval mode.
        example: one input batch; the graph holds for this shape only.

    Raises:
        ModelError: a model is in training mode or cannot be exported, or the two perform different operations or hold
            tensors of different names or shapes.

    >>> float_model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).eval()
    >>> graph = trace_pair(float_model, float_model, torch.zeros(1, 2))
    >>> [operation(node) for node in graph.nodes], [graph.label(node) for node in graph.nodes]
    (['linear', 'relu', 'linear'], ['0', 'relu (relu)', '2'])
    """
    for one, name in ((model, "float"), (quantized, "quantized")):
        if any(module.training for module in one.modules()):
            raise ModelError(f"the {name} model is in training mode, where it is not one fixed map; call .eval() first")
    program = _export(model, _like_weights(example, model))
    other = program if quantized is model else _export(quantized, _like_weights(example, quantized))
    _check_same(_calls(program), _calls(other))
    exact, stored = _tensors(program), _tensors(other)
    program = _without_updates(program)
    mine = _calls(program)
    names = {**program.graph_signature.inputs_to_parameters, **program.graph_signature.inputs_to_buffers}
    names.update(program.graph_signature.inputs_to_lifted_tensor_constants)
    strange = [name for name in names.values() if name not in stored or stored[name].shape != exact[name].shape]
    if strange:
        raise ModelError(f"the quantized model lacks {strange[0]} or holds it in another shape; bound like with like")
    inner = {node.name: getattr(program.graph_module, str(node.target)) for node in _nodes(program, "get_attr")}
    constants = {key: Constant(_wide(exact[name]), _wide(stored[name])) for key, name in names.items()}
    constants.update({name: Constant(value, value) for name, value in inner.items()})
    output = next(node for node in program.graph.nodes if node.op == "output").args[0]
    first = output[0] if isinstance(output, (tuple, list)) else output
    layers = {node.name: _owner(node, names) for node in mine}
    return Graph(tuple(mine), str(program.graph_signature.user_inputs[0]), first.name, constants, layers)


def _like_weights(example: Tensor, model: nn.Module) -> Tensor:
    """Give a real example the model's precision, and any example its device."""
    weight = next((one for one in model.parameters() if one.is_floating_point()), None)
    if weight is None:
        return example
    return example.to(weight if example.is_floating_point() else weight.device)


def _export(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(model, (example,))
    except Exception as reason:
        raise ModelError(f"torch.export cannot trace this model, so nothing can be bounded: {reason}") from reason


def _without_updates(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Rewrite in-place operations, after which an earlier name would mean a later value."""
    if not any(
        isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable for node in _calls(program)
    ):
        return program
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rewritten: torch.export.ExportedProgram = program.run_decompositions({})
        return rewritten


def _calls(program: torch.export.ExportedProgram) -> list[fx.Node]:
    return _nodes(program, "call_function")


def _nodes(program: torch.export.ExportedProgram, kind: str) -> list[fx.Node]:
    return [node for node in program.graph.nodes if node.op == kind]


def _check_same(mine: list[fx.Node], theirs: list[fx.Node]) -> None:
    for one, other in zip(mine, theirs, strict=False):
        if str(one.target) != str(other.target) or str(one.args) != str(other.args):
            raise ModelError(
                f"the two models perform different operations: {one.format_node()} against {other.format_node()}"
            )
    if len(mine) != len(theirs):
        raise ModelError(f"the two models perform {len(mine)} and {len(theirs)} operations; they must be the same")


def _tensors(program: torch.export.ExportedProgram) -> dict[str, Tensor]:
    return {
        name: value for name, value in {**program.state_dict, **program.constants}.items() if torch.is_tensor(value)
    }


def _wide(value: Any) -> Any:
    """Turn real tensors, also those of a list, into float64 ones."""
    if isinstance(value, (list, tuple)):
        return type(value)(_wide(one) for one in value)
    if not isinstance(value, Tensor):
        return value
    return value.detach().cpu().double() if value.is_floating_point() else value.detach().cpu()


def _owner(node: fx.Node, names: Mapping[str, str]) -> str:
    for source in node.all_input_nodes:
        if source.name in names:
            return names[source.name].rpartition(".")[0]
    return ""


class NotCovered(Exception):  # noqa: N818 -- a signal inside this room, not an error of the caller
    """An operation has no rule for the values that it meets."""


@dataclass(frozen=True)
class Unknown:
    """The value behind an operation that has no rule."""


def interpret(
    graph: Graph, start: Any, rule: Callable[[fx.Node, list[Any], dict[str, Any]], Any]
) -> tuple[Any, tuple[str, ...]]:
    """Run the graph on `start` with a rule for every operation; return the output's value and what is not covered.

    A node that depends on constants only is computed for both models. Every other node goes to `rule(node, args,
    kwargs)`, whose arguments are the values found so far with plain numbers, lists and strings in between. Where the
    rule raises `NotCovered`, that node and all that depend on it become `Unknown`. Values are dropped after their last
    use, since a bound's values can be large.
    """
    values: dict[str, Any] = {**graph.constants, graph.input: start}
    last_use = {source.name: node.name for node in graph.nodes for source in node.all_input_nodes}
    missing: list[str] = []
    for node in graph.nodes:
        sources = [values[source.name] for source in node.all_input_nodes]
        try:
            values[node.name] = (
                Unknown() if any(isinstance(s, Unknown) for s in sources) else _value(node, values, rule)
            )
        except NotCovered:
            missing.append(graph.label(node))
            values[node.name] = Unknown()
        for source in node.all_input_nodes:
            if last_use[source.name] == node.name and source.name != graph.output:
                values.pop(source.name, None)
    result = values[graph.output]
    return result, tuple(dict.fromkeys(missing)) if isinstance(result, Unknown) else ()


def _value(node: fx.Node, values: Mapping[str, Any], rule: Callable[[fx.Node, list[Any], dict[str, Any]], Any]) -> Any:
    if all(isinstance(values[source.name], Constant) for source in node.all_input_nodes):
        return Constant(*(_computed(node, values, side) for side in ("exact", "stored")))
    args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda source: values[source.name])
    return rule(node, list(args), dict(kwargs))


def _computed(node: fx.Node, values: Mapping[str, Any], side: str) -> Any:
    args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda one: getattr(values[one.name], side))
    return _wide(call(node, args, kwargs))


def call(node: fx.Node, args: Any, kwargs: Any) -> Any:
    """Perform a node's operation on plain tensors, whose layout in memory may differ from the traced one."""
    if operation(node) in ("view", "_unsafe_view"):
        return args[0].reshape(args[1])
    assert callable(node.target)
    return node.target(*args, **kwargs)
