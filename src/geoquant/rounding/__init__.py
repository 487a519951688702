"""How is a grid point chosen? Roundings behind one protocol, by name in `ROUNDINGS`."""

from geoquant.rounding.gptq import Gptq
from geoquant.rounding.nearest import nearest
from geoquant.rounding.protocol import ROUNDINGS, Rounding, RoundingContext, uses_inputs
from geoquant.rounding.stochastic import draw_neighbour, stochastic

__all__ = [
    "ROUNDINGS",
    "Gptq",
    "Rounding",
    "RoundingContext",
    "draw_neighbour",
    "nearest",
    "stochastic",
    "uses_inputs",
]
