"""What does each choice cost? Predictors behind one protocol, and the profile that keeps their answers."""

from geoquant.sensitivity.condition_number import ConditionNumber
from geoquant.sensitivity.hawq import HawqV2
from geoquant.sensitivity.one_layer_kl import OneLayerKL
from geoquant.sensitivity.profiling import (
    DEFAULT_GRIDS,
    DEFAULT_PREDICTORS,
    Profile,
    make_subject,
    parse_profile,
    profile,
)
from geoquant.sensitivity.protocol import PREDICTORS, DamageTable, Predictor, Subject, table
from geoquant.sensitivity.weight_error import WeightError

__all__ = [
    "DEFAULT_GRIDS",
    "DEFAULT_PREDICTORS",
    "PREDICTORS",
    "ConditionNumber",
    "DamageTable",
    "HawqV2",
    "OneLayerKL",
    "Predictor",
    "Profile",
    "Subject",
    "WeightError",
    "make_subject",
    "parse_profile",
    "profile",
    "table",
]
