"""What does theory promise of a whole network: a graph of error functionals, from the first layer to the last?

For a ball of inputs around each sample, every operation gets a functional Φ(ε) = Lε + Δ: L is a Lipschitz constant of
the *quantized* operation, Δ the norm of its own error at the *float* network's activations (never mixed, see
`functional`). Residual adds sum their branches; an operation without a rule is named in the result, which then bounds
nothing. Norms are 2-norms over a sample's whole tensor.

Where the answer stops: products of norms are vacuous in deep networks; the gap to `error_observed` belongs beside them.
Numbers are float64 with a margin of 1e-12 for rounding, not rounded outward throughout like `differential_bound`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from geoquant.bounds.flow import Flow
from geoquant.bounds.flow_rules import transform
from geoquant.bounds.functional import ErrorFunctional
from geoquant.bounds.graph import Graph, interpret, operation, trace_pair
from geoquant.errors import DataError


@dataclass(frozen=True)
class FunctionalNode:
    """One operation of the graph.

    Attributes:
        name: the layer's name, or the operation's own.
        operation: what it does, in ATen's words.
        inputs: names of the operations that feed it.
        functional: its Φ per unit of input error; a sum of branches has L = 1 for each.
    """

    name: str
    operation: str
    inputs: tuple[str, ...]
    functional: ErrorFunctional


@dataclass(frozen=True)
class NetworkFunctional:
    """The bound on ‖f̂(x̂) − f(x)‖₂ for every x of one ball and every x̂ within the input error.

    Attributes:
        functional: Φ of the whole network; None when an operation on the way is not covered.
        contributions: layer → what its own error contributes to `functional.local`; they add up to it.
        nodes: the operations with their functionals, in order.
        not_covered: names of the operations that have no rule.
    """

    functional: ErrorFunctional | None
    contributions: Mapping[str, float]
    nodes: tuple[FunctionalNode, ...]
    not_covered: tuple[str, ...]

    def __call__(self, error: float = 0.0) -> float:
        """Bound the output error at this input error; infinite when something is not covered."""
        return math.inf if self.functional is None else self.functional(error)


def trace_functionals(
    model: nn.Module, quantized: nn.Module, inputs: Tensor, radius: float = 0.0, input_error: float = 0.0
) -> tuple[NetworkFunctional, ...]:
    """Trace two models of the same structure into one functional per input.

    Args:
        model: the float model, in eval mode.
        quantized: the same structure with other weights.
        inputs: (N, …), the centers of the balls; token ids are allowed with radius 0.
        radius: 2-norm radius of the ball of float inputs, in input units.
        input_error: largest error of the quantized network's input; products of activations need it in advance.

    Raises:
        DataError: inputs are empty or not finite, or a radius or error is negative or meaningless for token ids.
        ModelError: see `trace_pair`.

    >>> chain = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False)).eval()
    >>> rounded = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False)).eval()
    >>> with torch.no_grad():
    ...     for layer, weight in ((chain[0], 2.0), (chain[2], 3.0), (rounded[0], 2.5), (rounded[2], 3.25)):
    ...         _ = layer.weight.fill_(weight)
    >>> (result,) = trace_functionals(chain, rounded, torch.ones(1, 1))
    >>> round(result(), 6), {name: round(part, 6) for name, part in result.contributions.items()}
    (2.125, {'0': 1.625, '2': 0.5})
    >>> (rounded(torch.ones(1, 1)) - chain(torch.ones(1, 1))).item()       # same signs: attained
    2.125
    """
    _check(inputs, radius, input_error)
    graph = trace_pair(model, quantized, inputs[:1])
    norms: dict[Any, Any] = {}
    return tuple(_trace_one(graph, inputs[n : n + 1], radius, input_error, norms) for n in range(len(inputs)))


def _check(inputs: Tensor, radius: float, input_error: float) -> None:
    if inputs.dim() == 0 or len(inputs) == 0:
        raise DataError(f"a bound needs a non-empty batch of inputs, got shape {tuple(inputs.shape)}")
    if not (math.isfinite(radius) and radius >= 0 and math.isfinite(input_error) and input_error >= 0):
        raise DataError(f"radius and input error must be finite and at least 0, got {radius} and {input_error}")
    if inputs.is_floating_point():
        if not bool(inputs.isfinite().all()):
            raise DataError("the inputs hold NaN or Inf")
    elif radius or input_error:
        raise DataError("token ids have no neighbourhood; use radius 0 and input error 0")


@torch.no_grad()
def _trace_one(
    graph: Graph, sample: Tensor, radius: float, input_error: float, norms: dict[Any, Any]
) -> NetworkFunctional:
    wide = sample.detach().cpu()
    wide = wide.double() if wide.is_floating_point() else wide
    start = Flow(wide, radius, 1.0 if sample.is_floating_point() else 0.0, {}, input_error, norms)
    nodes: list[FunctionalNode] = []

    def apply(node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
        label = graph.label(node)
        result, own = transform(node, args, kwargs, label)
        inputs = tuple(source.name for source in node.all_input_nodes if source.name not in graph.constants)
        nodes.append(FunctionalNode(label, operation(node), inputs, own))
        return result

    result, missing = interpret(graph, start, apply)
    if not isinstance(result, Flow):
        return NetworkFunctional(None, {}, tuple(nodes), missing)
    functional = ErrorFunctional(result.lipschitz, math.fsum(result.parts.values()))
    return NetworkFunctional(functional, dict(result.parts), tuple(nodes), ())
