"""Where do the rules for flows live, and what do they share?

The table from operation name to rule, and the affine map that most rules end in.

Where the answer stops: rules themselves are in `flow_rules` and `flow_attention`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from geoquant.bounds.flow import Flow
from geoquant.bounds.graph import Constant, NotCovered

Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}

_MARGIN = 1e-12


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule under operation names."""

    def keep(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return keep


def flow_of(value: Any) -> Flow:
    """Return the value if it is a flow, else say that no rule holds."""
    if not isinstance(value, Flow):
        raise NotCovered("a constant where an activation was expected")
    return value


def constant_of(value: Any) -> Constant:
    """Return the value if it is a constant, else say that no rule holds."""
    if not isinstance(value, Constant):
        raise NotCovered("an activation used as a weight")
    return value


def plain(value: Any) -> Any:
    """Replace flows by their centers and constants by their exact value."""
    if isinstance(value, (list, tuple)):
        return type(value)(plain(one) for one in value)
    if isinstance(value, Flow):
        return value.center
    return value.exact if isinstance(value, Constant) else value


def affine(
    flow: Flow,
    apply: Callable[[Tensor, Tensor], Tensor],
    weight: Constant,
    bias: Constant | None,
    label: str,
    norm: Callable[[Tensor], float],
) -> Flow:
    """Apply an affine layer: exact map W, stored map Ŵ, own error ‖(Ŵ − W)x + b̂ − b‖ over the ball."""
    exact, stored, moved = _norms(flow, weight, norm)
    center = apply(weight.exact, flow.center)
    own = apply(weight.stored - weight.exact, flow.center)
    if bias is not None:
        center, own = center + bias.exact, own + (bias.stored - bias.exact)
    # The margin covers the rounding of activations and of this sum, neither of which is exact.
    margin = _MARGIN * float(torch.linalg.vector_norm(flow.center))
    local = float(torch.linalg.vector_norm(own)) + moved * (flow.spread + margin)
    return flow.through(center, exact, stored, label, local)


def _norms(flow: Flow, weight: Constant, norm: Callable[[Tensor], float]) -> tuple[float, float, float]:
    """Bound the norms of the exact map, the stored map and their difference; they do not depend on the input."""
    key = (id(weight), *flow.center.shape)
    if key not in flow.norms:
        exact = stored = norm(weight.exact)
        moved = 0.0
        if not weight.same:
            stored, moved = norm(weight.stored), norm(weight.stored - weight.exact)
        # The constant is kept with its norms, so that its id stays taken.
        flow.norms[key] = (weight, (exact, stored, moved))
    norms: tuple[float, float, float] = flow.norms[key][1]
    return norms


def growth(before: Tensor, after: Tensor) -> float:
    """Return the factor by which broadcasting `before` to the shape of `after` stretches its 2-norm."""
    return math.sqrt(max(after.numel() / before.numel(), 1.0))


def scaled(flow: Flow, factor: Constant, offset: Constant | None, label: str) -> Flow:
    """Multiply and shift elementwise by constants, which may broadcast either way."""
    copies = growth(flow.center, flow.center * factor.exact)

    def norm(weight: Tensor) -> float:
        return float(weight.abs().max()) * copies

    return affine(flow, lambda w, v: v * w, factor, offset, label, norm)


def as_constant(value: Any) -> Constant:
    """Return a constant for a constant or a plain number."""
    if isinstance(value, Flow):
        raise NotCovered("a division by an activation")
    return value if isinstance(value, Constant) else Constant(*[torch.as_tensor(value, dtype=torch.float64)] * 2)
