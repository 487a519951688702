"""What theory really promises about quantized networks, and how far it is from what is seen.

Error functionals and their graphs, the three tiers of one error, a differential bound over boxes, necessary and
sufficient bits, training steps in low precision, and the statistical certificate. Every bound says for which inputs,
grid or samples it holds; every comparison formula of the seeds keeps a name that says what it is.
"""

from __future__ import annotations

from geoquant.bounds.bits import (
    CRITICAL_POINT,
    INPUT_ROUNDING,
    OUTPUT_CODING,
    BitRequirement,
    necessary_bits,
    necessary_outputs,
    seed9_condition_number_bits,
    seed11_curvature_bits,
    seed11_linear_bits,
    sufficient_bits,
)
from geoquant.bounds.certificate import (
    ASSUMPTION,
    Certificate,
    CertificateSequence,
    accuracy_changes,
    certify_accuracy,
    certify_loss,
    loss_changes,
)
from geoquant.bounds.descent_condition import (
    Descent,
    coupled_rule,
    dead_zone,
    descent,
    noise_mark,
    own_layer_rule,
    seed18_layer_bits,
    stochastic_rounding_variance,
    sufficient_forward_bits,
    sufficient_layer_bits,
)
from geoquant.bounds.differential import DifferentialBound, differential_bound
from geoquant.bounds.functional import ErrorFunctional, compose, compose_counting_twice
from geoquant.bounds.mean_bounds import anytime_upper_mean_bound, upper_mean_bound
from geoquant.bounds.search import attacked_error, change_size, sampled_error
from geoquant.bounds.tiers import (
    BOUND_METHODS,
    ErrorBound,
    ErrorEstimate,
    ErrorTiers,
    error_bound,
    error_estimate,
    error_observed,
    error_tiers,
)
from geoquant.bounds.trace import FunctionalNode, NetworkFunctional, trace_functionals
from geoquant.bounds.training_step import (
    StepFunctional,
    UpdateFunctional,
    adam,
    backward,
    forward,
    momentum,
    nonexpansive_sgd,
    sgd,
)

__all__ = [
    "ASSUMPTION",
    "BOUND_METHODS",
    "CRITICAL_POINT",
    "INPUT_ROUNDING",
    "OUTPUT_CODING",
    "BitRequirement",
    "Certificate",
    "CertificateSequence",
    "Descent",
    "DifferentialBound",
    "ErrorBound",
    "ErrorEstimate",
    "ErrorFunctional",
    "ErrorTiers",
    "FunctionalNode",
    "NetworkFunctional",
    "StepFunctional",
    "UpdateFunctional",
    "accuracy_changes",
    "adam",
    "anytime_upper_mean_bound",
    "attacked_error",
    "backward",
    "certify_accuracy",
    "certify_loss",
    "change_size",
    "compose",
    "compose_counting_twice",
    "coupled_rule",
    "dead_zone",
    "descent",
    "differential_bound",
    "error_bound",
    "error_estimate",
    "error_observed",
    "error_tiers",
    "forward",
    "loss_changes",
    "momentum",
    "necessary_bits",
    "necessary_outputs",
    "noise_mark",
    "nonexpansive_sgd",
    "own_layer_rule",
    "sampled_error",
    "seed9_condition_number_bits",
    "seed11_curvature_bits",
    "seed11_linear_bits",
    "seed18_layer_bits",
    "sgd",
    "stochastic_rounding_variance",
    "sufficient_bits",
    "sufficient_forward_bits",
    "sufficient_layer_bits",
    "trace_functionals",
    "upper_mean_bound",
]
