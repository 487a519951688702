"""What travels along a graph of error functionals?

A `Flow` holds, for one ball of inputs, the float network's activation at the center, how far the activation can move
over the ball, and how far the quantized network's activation can be from it, split by the layer whose rounding is to
blame. The three operations below keep it sound: a Lipschitz map, a sum and a product.

Where the answer stops: 2-norms over the whole tensor of one sample; directions are forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Flow:
    """Where one tensor of the float network can be, and how far the quantized one can be from it.

    Attributes:
        center: float64 value of the float network at the center of the ball; (1, …).
        spread: bound of ‖x − center‖₂ over the ball.
        lipschitz: amplification of the input error so far.
        parts: layer → bound of the error that its rounding causes here.
        input_error: the input error that the bound must hold for.
        norms: shared store of operator norms, which do not depend on the input.
    """

    center: Tensor
    spread: float
    lipschitz: float
    parts: Mapping[str, float]
    input_error: float
    norms: dict[Any, Any] = field(repr=False)

    @property
    def error(self) -> float:
        """Bound of ‖x̂ − x‖₂."""
        return self.lipschitz * self.input_error + math.fsum(self.parts.values())

    @property
    def still(self) -> bool:
        """Whether both networks hold exactly this one value here, whatever the input error."""
        return self.spread == 0 and self.lipschitz == 0 and self.error == 0

    def through(self, center: Tensor, exact: float, stored: float, label: str = "", local: float = 0.0) -> Flow:
        """Apply a map with these Lipschitz constants in the two networks, which adds `local` at float activations."""
        parts = {name: stored * part for name, part in self.parts.items()}
        if local > 0:
            parts[label] = parts.get(label, 0.0) + local
        return replace(self, center=center, spread=exact * self.spread, lipschitz=stored * self.lipschitz, parts=parts)


def joined(center: Tensor, flows: list[Flow], weights: list[float] | None = None) -> Flow:
    """Return a value whose moves and errors are at most the weighted sums of those of `flows`.

    >>> import torch
    >>> one = Flow(torch.zeros(1), 1.0, 1.0, {"a": 0.5}, 0.0, {})
    >>> two = Flow(torch.zeros(1), 0.0, 1.0, {"a": 0.25, "b": 1.0}, 0.0, {})
    >>> joined(torch.zeros(1), [one, two]).parts
    {'a': 0.75, 'b': 1.0}
    """
    weights = weights or [1.0] * len(flows)
    parts: dict[str, float] = {}
    for flow, weight in zip(flows, weights, strict=True):
        for name, part in flow.parts.items():
            parts[name] = parts.get(name, 0.0) + weight * part
    return replace(
        flows[0],
        center=center,
        spread=math.fsum(w * flow.spread for w, flow in zip(weights, flows, strict=True)),
        lipschitz=math.fsum(w * flow.lipschitz for w, flow in zip(weights, flows, strict=True)),
        parts=parts,
    )


def product(center: Tensor, left: Flow, right: Flow, sizes: tuple[float, float]) -> Flow:
    """Return a bilinear combination: âb̂ − ab = (â − a)b̂ + a(b̂ − b).

    Args:
        center: the combination of the two centers.
        left: first factor.
        right: second factor.
        sizes: norms of the two centers that bound the combination, |a·b| ≤ size(a)‖b‖ and ≤ ‖a‖size(b).
    """
    clean_left, clean_right = sizes[0] + left.spread, sizes[1] + right.spread
    result = joined(center, [left, right], [clean_right + right.error, clean_left])
    return replace(result, spread=clean_right * left.spread + sizes[0] * right.spread)
