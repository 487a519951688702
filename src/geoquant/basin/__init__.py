"""Will rounding stay in the low-loss basin, and if not, what brings it back? Measured before the model is changed."""

from geoquant.basin.assumptions import LandscapeEstimate, measure_landscape
from geoquant.basin.codewords import Candidate, WalkSettings
from geoquant.basin.diagnosing import SliceSettings, diagnose
from geoquant.basin.diagnosis import DIAGNOSIS_FILE, Constructive, Diagnosis
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
from geoquant.basin.slices import Line, Marker, Plane
from geoquant.basin.verdict import THRESHOLDS, VERDICTS, Evidence, Thresholds, decide
from geoquant.basin.width import BasinWidth, Width, WidthSettings, basin_width

__all__ = [
    "DIAGNOSIS_FILE",
    "THRESHOLDS",
    "VERDICTS",
    "BasinWidth",
    "Bowl",
    "Candidate",
    "Codewords",
    "Constructive",
    "Diagnosis",
    "Evidence",
    "Landscape",
    "LandscapeEstimate",
    "Line",
    "LossRise",
    "Marker",
    "Plane",
    "Radius",
    "SliceSettings",
    "Thresholds",
    "Track",
    "WalkSettings",
    "Width",
    "WidthSettings",
    "basin_width",
    "decide",
    "diagnose",
    "entry_bound",
    "find_radius",
    "float_training",
    "measure_landscape",
    "straight_through",
]
