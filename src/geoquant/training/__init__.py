"""Training loops, and training in few bits: forward, backward and optimizer."""

from geoquant.training.accounting import BitOperations
from geoquant.training.adaptive import AdaptivePrecision, adaptive
from geoquant.training.classifier import fit_classifier_
from geoquant.training.log import Change, Log
from geoquant.training.precision import COARSE, FINE, LayerPrecision
from geoquant.training.schedules import SCHEDULES, LayerFacts, Moment, Proposal, Schedule, make_schedule

__all__ = [
    "COARSE",
    "FINE",
    "SCHEDULES",
    "AdaptivePrecision",
    "BitOperations",
    "Change",
    "LayerFacts",
    "LayerPrecision",
    "Log",
    "Moment",
    "Proposal",
    "Schedule",
    "adaptive",
    "fit_classifier_",
    "make_schedule",
]
