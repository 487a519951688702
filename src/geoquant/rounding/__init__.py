"""How is a grid point chosen? Roundings behind one protocol, by name in `ROUNDINGS`."""

from geoquant.rounding.nearest import nearest
from geoquant.rounding.protocol import ROUNDINGS, Rounding, RoundingContext
from geoquant.rounding.stochastic import draw_neighbour, stochastic

__all__ = ["ROUNDINGS", "Rounding", "RoundingContext", "draw_neighbour", "nearest", "stochastic"]
