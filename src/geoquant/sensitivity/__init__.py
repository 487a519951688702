"""What does each choice cost? Predictors behind one protocol, and the profile that keeps their answers."""

from geoquant.sensitivity.caq import Caq, LayerConstants, caq_constants, composed_log_error
from geoquant.sensitivity.condition_number import ConditionNumber
from geoquant.sensitivity.defaults import DEFAULT_GRIDS, NARROW_GRIDS, default_predictors
from geoquant.sensitivity.delta_loss import DeltaLoss
from geoquant.sensitivity.deploying import Deploy
from geoquant.sensitivity.fit import Fit, GradientNorm
from geoquant.sensitivity.gauss_newton_form import GaussNewtonForm, Shifts, gauss_newton_shifts
from geoquant.sensitivity.hawq import HawqV2
from geoquant.sensitivity.hessian_diagonal import HessianDiagonal
from geoquant.sensitivity.hessian_form import HessianForm
from geoquant.sensitivity.imatrix import IMatrix
from geoquant.sensitivity.kfac import KFac
from geoquant.sensitivity.marginal_kl import MarginalKL, Marginals
from geoquant.sensitivity.modelopt_gradient import ModelOptGradient
from geoquant.sensitivity.nmse import Nmse
from geoquant.sensitivity.one_input_kl import ActivationTable, activation_cost, find_activations, measure_activations
from geoquant.sensitivity.one_layer_kl import OneLayerKL
from geoquant.sensitivity.operating_point import random_columns, stored_bits, thrifty_columns
from geoquant.sensitivity.profiling import Profile, make_subject, parse_profile, profile
from geoquant.sensitivity.protocol import PREDICTORS, DamageTable, Predictor, Subject, table
from geoquant.sensitivity.sampled_plans import Sampled, SampledPlans
from geoquant.sensitivity.spectral_norm import SpectralNorm
from geoquant.sensitivity.weight_error import WeightError

__all__ = [
    "DEFAULT_GRIDS",
    "NARROW_GRIDS",
    "PREDICTORS",
    "ActivationTable",
    "Caq",
    "ConditionNumber",
    "DamageTable",
    "DeltaLoss",
    "Deploy",
    "Fit",
    "GaussNewtonForm",
    "GradientNorm",
    "HawqV2",
    "HessianDiagonal",
    "HessianForm",
    "IMatrix",
    "KFac",
    "LayerConstants",
    "MarginalKL",
    "Marginals",
    "ModelOptGradient",
    "Nmse",
    "OneLayerKL",
    "Predictor",
    "Profile",
    "Sampled",
    "SampledPlans",
    "Shifts",
    "SpectralNorm",
    "Subject",
    "WeightError",
    "activation_cost",
    "caq_constants",
    "composed_log_error",
    "default_predictors",
    "find_activations",
    "gauss_newton_shifts",
    "make_subject",
    "measure_activations",
    "parse_profile",
    "profile",
    "random_columns",
    "stored_bits",
    "table",
    "thrifty_columns",
]
