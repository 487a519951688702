"""How much arithmetic did training do, weighted by the bits it was done in?

Exact counts, layer by layer and call by call: floating-point operations by torch's formula for a product (an addition
and a multiplication are two), for the forward product, the two backward products and the optimizer separately. Two
conventions stand side by side: *single*, Σ FLOPs · p with p the bits of the wider operand (docs/sources.md,
"End-to-End QAT via Numerical Geometry"), and *product*, Σ FLOPs · (bits of one operand) · (bits of the other), the
work of a multiplier array.

Where the answer stops: these are counts for a machine that has such units. What is not a linear or convolutional layer
(norms, activations, attention's own products) runs in float32 and is no part of the sums.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from geoquant.training.numerics import level
from geoquant.training.precision import LayerPrecision

PARTS = ("forward", "backward_input", "backward_weight", "optimizer")


@dataclass
class LayerCount:
    """What one layer has computed so far.

    Attributes:
        flops: per part.
        single: bit-operations by the bits of the wider operand, per part.
        product: bit-operations by the product of both operands' bits, per part.
        activation_bits: what the last forward kept for its backward.
    """

    flops: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    single: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    product: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    activation_bits: int = 0

    @property
    def products(self) -> int:
        """Floating-point operations of the three products together."""
        return sum(self.flops[part] for part in PARTS[:3])

    def add(self, part: str, flops: int, one: int, other: int) -> None:
        """Count `flops` operations between operands of `one` and `other` bits."""
        self.flops[part] += flops
        self.single[part] += flops * max(one, other)
        self.product[part] += flops * one * other

    def forward(self, flops: int, precision: LayerPrecision, inputs: int) -> None:
        """Count a forward product over `inputs` activations.

        >>> count = LayerCount()
        >>> count.forward(10, LayerPrecision.of("int4", "int8"), 3)
        >>> count.single["forward"], count.product["forward"], count.activation_bits
        (40, 160, 12)
        """
        activations = level(precision.activations).bits
        self.add("forward", flops, level(precision.weights).bits, activations)
        self.activation_bits = inputs * activations

    def backward(self, flops: int, precision: LayerPrecision, to_input: bool, to_weight: bool = True) -> None:
        """Count the products for the input and for the weight, each when somebody needs it."""
        gradients = level(precision.gradients).bits
        if to_input:
            self.add("backward_input", flops, gradients, level(precision.weights).bits)
        if to_weight:
            self.add("backward_weight", flops, gradients, level(precision.activations).bits)

    def update(self, flops: int, precision: LayerPrecision) -> None:
        """Count an optimizer step of `flops` operations."""
        self.add("optimizer", flops, level(precision.state).bits, level(precision.stored).bits)

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers."""
        kept = {"flops": dict(self.flops), "single": dict(self.single), "product": dict(self.product)}
        return {**kept, "activation_bits": self.activation_bits}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict` was."""
        for name in ("flops", "single", "product"):
            getattr(self, name).update(state[name])
        self.activation_bits = state["activation_bits"]


@dataclass(frozen=True)
class BitOperations:
    """Sums over layers and steps.

    Attributes:
        flops, single, product: per part (`PARTS`).
    """

    flops: dict[str, int]
    single: dict[str, int]
    product: dict[str, int]

    @property
    def total(self) -> int:
        """All bit-operations by the bits of the wider operand."""
        return sum(self.single.values())

    @property
    def total_product(self) -> int:
        """All bit-operations by the product of both operands' bits."""
        return sum(self.product.values())

    @property
    def average_bits(self) -> float:
        """Bits per floating-point operation, by the wider operand: 32 in float32."""
        return self.total / max(sum(self.flops.values()), 1)


def summed(counts: Iterable[LayerCount]) -> BitOperations:
    """Add up layers.

    >>> count = LayerCount()
    >>> count.add("forward", 10, 4, 8)
    >>> summed([count, count]).total, summed([count]).average_bits
    (160, 8.0)
    """
    totals = {name: dict.fromkeys(PARTS, 0) for name in ("flops", "single", "product")}
    for count in counts:
        for name, sums in totals.items():
            for part in PARTS:
                sums[part] += getattr(count, name)[part]
    return BitOperations(**totals)
