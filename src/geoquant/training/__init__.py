"""Training loops, and training in few bits: forward, backward and optimizer."""

from geoquant.training.accounting import BitOperations
from geoquant.training.adaptive import AdaptivePrecision, adaptive
from geoquant.training.checkpoint import load_checkpoint_, save_checkpoint
from geoquant.training.classifier import fit_classifier_
from geoquant.training.log import Change, Log
from geoquant.training.practice import Practice
from geoquant.training.precision import COARSE, FINE, LayerPrecision
from geoquant.training.run import Settings, TrainingRun, train_
from geoquant.training.schedules import (
    SCHEDULES,
    LayerFacts,
    Moment,
    NumGeom,
    Proposal,
    Schedule,
    Seed18,
    Sound,
    make_schedule,
)

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
    "NumGeom",
    "Practice",
    "Proposal",
    "Schedule",
    "Seed18",
    "Settings",
    "Sound",
    "TrainingRun",
    "adaptive",
    "fit_classifier_",
    "load_checkpoint_",
    "make_schedule",
    "save_checkpoint",
    "train_",
]
