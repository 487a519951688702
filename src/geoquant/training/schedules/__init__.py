"""Which precision, when? Schedules behind one protocol; see `geoquant.training.schedules.protocol`."""

from geoquant.training.schedules.cyclic import Cyclic
from geoquant.training.schedules.numgeom import NumGeom
from geoquant.training.schedules.protocol import SCHEDULES, LayerFacts, Moment, Proposal, Schedule, make_schedule
from geoquant.training.schedules.seed18 import Combined, CurvatureOnly, GradientOnly, Seed18
from geoquant.training.schedules.sound import Sound
from geoquant.training.schedules.static import Static

__all__ = [
    "SCHEDULES",
    "Combined",
    "CurvatureOnly",
    "Cyclic",
    "GradientOnly",
    "LayerFacts",
    "Moment",
    "NumGeom",
    "Proposal",
    "Schedule",
    "Seed18",
    "Sound",
    "Static",
    "make_schedule",
]
