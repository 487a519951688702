"""How far can the quantized network be from the float one, for every input of a box?

Both networks are propagated as one pair: the set of float values x, and the set of differences d = x̂ − x, as forms that
share their symbols (see `zonotope`). The result holds for every point of the box, for the two real functions and for
their evaluation in float64; outward rounding covers the arithmetic of the bound itself. With ``arithmetic="float32"``
it holds for their evaluation in float32, whatever the order of summation.

Where the answer stops: piecewise linear networks (see `pair_rules`). On deep networks that were not trained for it,
relaxations of many kinks add up and the bound, though true, may say little; print it beside `error_observed`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from geoquant.bounds.graph import Constant, Graph, interpret, trace_pair
from geoquant.bounds.outward import UNIT_FLOAT32, UNIT_FLOAT64
from geoquant.bounds.pair_affine import Context
from geoquant.bounds.pair_rules import transform
from geoquant.bounds.zonotope import Form, Pair, box
from geoquant.errors import DataError, GeoquantError

_UNITS = {"float64": UNIT_FLOAT64, "float32": UNIT_FLOAT32}


@dataclass(frozen=True)
class DifferentialBound:
    """Bounds on every output of f̂ − f over a box around each input.

    Attributes:
        lower: float64 (N, …outputs): no input of box n makes an output of f̂ − f smaller.
        upper: float64, the same shape: nor larger. Infinite where something is not covered.
        not_covered: names of the layers and operations that have no rule; empty when the bound holds.
        symbols: the most symbols any tensor had.
        arithmetic: "float64" or "float32", in which the networks may run.
    """

    lower: Tensor
    upper: Tensor
    not_covered: tuple[str, ...]
    symbols: int
    arithmetic: str

    @property
    def largest(self) -> Tensor:
        """Bound the largest absolute change of any output, per input; float64 (N,)."""
        return torch.maximum(-self.lower, self.upper).flatten(1).amax(1)


def differential_bound(
    model: nn.Module,
    quantized: nn.Module,
    inputs: Tensor,
    radius: float | Tensor,
    *,
    symbols: int | None = None,
    arithmetic: str = "float64",
) -> DifferentialBound:
    """Bound f̂ − f over the boxes |x − inputs[n]| ≤ radius.

    Args:
        model: the float model, in eval mode.
        quantized: the same structure with other weights.
        inputs: (N, …) centers of the boxes.
        radius: half width of the box, a number or a tensor that broadcasts against `inputs`, in input units.
        symbols: most symbols per tensor; 0 gives plain interval bounds of the pair, None as many as fit into 2 GiB
            (a symbol costs 16 bytes per element). More are tighter and slower.
        arithmetic: "float64" or "float32", in which the networks may run; the real functions are always covered.

    Raises:
        DataError: inputs or radius are not finite, empty, or the radius is negative.
        GeoquantError: an unknown arithmetic or a negative number of symbols.
        ModelError: see `trace_pair`.

    >>> scalar = nn.Linear(1, 1, bias=False).eval()
    >>> other = nn.Linear(1, 1, bias=False).eval()
    >>> with torch.no_grad():
    ...     _ = scalar.weight.fill_(2.0), other.weight.fill_(2.5)
    >>> result = differential_bound(scalar, other, torch.tensor([[1.0]]), 0.1)   # 0.5·x on [0.9, 1.1]
    >>> round(float(result.lower), 9), round(float(result.upper), 9)
    (0.45, 0.55)
    """
    if arithmetic not in _UNITS:
        raise GeoquantError(f"arithmetic is 'float64' or 'float32', got '{arithmetic}'")
    if symbols is not None and symbols < 0:
        raise GeoquantError(f"the number of symbols must be at least 0, got {symbols}")
    centers, radii = _checked(inputs, radius)
    graph = trace_pair(model, quantized, inputs[:1])
    context = Context(symbols, _UNITS[arithmetic])
    results = [_bound_one(graph, centers[n : n + 1], radii[n : n + 1], context) for n in range(len(centers))]
    lower, upper, names, used = zip(*results, strict=True)
    return DifferentialBound(torch.cat(lower), torch.cat(upper), names[0], max(used), arithmetic)


def _checked(inputs: Tensor, radius: float | Tensor) -> tuple[Tensor, Tensor]:
    if inputs.dim() == 0 or len(inputs) == 0 or not inputs.is_floating_point():
        raise DataError(f"a box needs a non-empty batch of real inputs, got {tuple(inputs.shape)} of {inputs.dtype}")
    centers = inputs.detach().cpu().double()
    radii = torch.as_tensor(radius, dtype=torch.float64).expand_as(centers).contiguous()
    if not (centers.isfinite().all() and radii.isfinite().all() and bool((radii >= 0).all())):
        raise DataError("inputs and radius must be finite, and the radius at least 0")
    return centers, radii


@torch.no_grad()
def _bound_one(
    graph: Graph, center: Tensor, radius: Tensor, context: Context
) -> tuple[Tensor, Tensor, tuple[str, ...], int]:
    value = box(center, radius, context.limit(center.numel()))
    zero = torch.zeros_like(center)
    start = Pair(value, Form(zero, torch.zeros_like(value.symbols), zero, 0.0), context.fresh(len(value.symbols)))

    def apply(node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
        return transform(node, args, kwargs, context)

    result, missing = interpret(graph, start, apply)
    if isinstance(result, Pair):
        return (*result.error.interval(), (), len(result.names))
    if isinstance(result, Constant):  # the output does not depend on the input at all
        change = result.stored - result.exact
        return change, change, (), 0
    unbounded = torch.full((1, 1), math.inf, dtype=torch.float64)
    return -unbounded, unbounded, missing, 0
