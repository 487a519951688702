"""Will rounding stay in the low-loss basin, and if not, what brings it back? Measured before the model is changed."""

from geoquant.basin.landscape import (
    Bowl,
    Codewords,
    Landscape,
    Track,
    entry_bound,
    float_training,
    straight_through,
)
from geoquant.basin.radius import Radius, find_radius
from geoquant.basin.rise import LossRise
from geoquant.basin.width import BasinWidth, Width, WidthSettings, basin_width

__all__ = [
    "BasinWidth",
    "Bowl",
    "Codewords",
    "Landscape",
    "LossRise",
    "Radius",
    "Track",
    "Width",
    "WidthSettings",
    "basin_width",
    "entry_bound",
    "find_radius",
    "float_training",
    "straight_through",
]
