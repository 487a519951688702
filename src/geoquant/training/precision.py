"""In how many bits is each part of a training step computed?

One `LayerPrecision` says it for one layer: the operands of its forward product, the gradient that enters its two
backward products, the weight gradient that leaves them, and what the optimizer keeps. An `Assignment` says it for all
layers. Layers that no assignment names, and everything that is not a linear or convolutional layer, stay in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from geoquant.training.numerics import FLOAT, level

PASSES = ("forward", "backward", "optimizer")


@dataclass(frozen=True)
class LayerPrecision:
    """The number format of every tensor in one layer's training step.

    Attributes:
        weights: as the products read them.
        activations: the layer's input, in the forward product and in the one for the weight gradient.
        gradients: the gradient of the layer's output, in both backward products.
        weight_gradients: what the optimizer is given.
        state: momentum and moments as the optimizer keeps them.
        stored: the weights as they are kept between steps.

    Raises:
        GridError: training does not compute in one of them.

    >>> LayerPrecision.of("int4", "int8").bits("backward")
    8
    >>> LayerPrecision().exact
    True
    """

    weights: str = FLOAT
    activations: str = FLOAT
    gradients: str = FLOAT
    weight_gradients: str = FLOAT
    state: str = FLOAT
    stored: str = FLOAT

    def __post_init__(self) -> None:
        for name in asdict(self).values():
            level(name)

    @staticmethod
    def of(forward: str, backward: str | None = None, optimizer: str = FLOAT) -> LayerPrecision:
        """Return one level for each pass; the backward level is the forward one unless given."""
        return LayerPrecision(forward, forward, backward or forward, FLOAT, optimizer, FLOAT)

    @property
    def exact(self) -> bool:
        """Whether the layer's products are those of plain PyTorch."""
        return {self.weights, self.activations, self.gradients, self.weight_gradients} == {FLOAT}

    def bits(self, which: str) -> int:
        """Return the bits of the widest operand in ``forward``, ``backward`` or ``optimizer``."""
        return level(self.level(which)).bits

    def level(self, which: str) -> str:
        """Return the widest format in ``forward``, ``backward`` or ``optimizer``."""
        forward = (self.weights, self.activations)
        names = {"forward": forward, "backward": (self.gradients,), "optimizer": (self.state, self.stored)}[which]
        return max(names, key=lambda name: level(name).bits)


Assignment = Mapping[str, LayerPrecision]


def next_level(levels: tuple[str, ...], bits: float) -> str:
    """Return the first of `levels` (ascending) with at least `bits`, the last when none has.

    >>> next_level(("int4", "int8", "fp32"), 4.2), next_level(("int4", "int8"), 40)
    ('int8', 'int8')
    """
    return next((name for name in levels if level(name).bits >= bits), levels[-1])


def sorted_levels(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the levels by ascending bits.

    >>> sorted_levels(("fp32", "int4"))
    ('int4', 'fp32')
    """
    return tuple(sorted(names, key=lambda name: level(name).bits))


COARSE = ("int4", "int8", "int16", "fp32")
FINE = ("int2", "int3", "int4", "int5", "int6", "int7", "int8", "int16", "fp32")
