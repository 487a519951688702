"""How is a grid point chosen? Roundings behind one protocol, by name in `ROUNDINGS`."""

from geoquant.rounding.descent import Descent
from geoquant.rounding.gptq import Gptq
from geoquant.rounding.hqq import Hqq
from geoquant.rounding.learned import AdaRound, SignRound
from geoquant.rounding.nearest import nearest
from geoquant.rounding.output_error import output_error
from geoquant.rounding.protocol import ROUNDINGS, Rounding, RoundingContext, uses_inputs
from geoquant.rounding.stochastic import draw_neighbour, stochastic

__all__ = [
    "ROUNDINGS",
    "AdaRound",
    "Descent",
    "Gptq",
    "Hqq",
    "Rounding",
    "RoundingContext",
    "SignRound",
    "draw_neighbour",
    "nearest",
    "output_error",
    "stochastic",
    "uses_inputs",
]
