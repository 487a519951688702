"""Quantization-aware training of a quantized model: latent weights, learned steps, and an ordinary model at the end."""

from geoquant.recovery.certifying import Certify
from geoquant.recovery.feeding import Source
from geoquant.recovery.latents import Latents, prepare_
from geoquant.recovery.objective import Objective
from geoquant.recovery.recovering import recover_
from geoquant.recovery.run import Recovered, Watching
from geoquant.recovery.running import Stepper, reestimate_norms_, training_mode_
from geoquant.recovery.settings import RecoveryError, Settings
from geoquant.recovery.trace import TRACE_FILE, Trace, TracePoint, Tracer

__all__ = [
    "TRACE_FILE",
    "Certify",
    "Latents",
    "Objective",
    "Recovered",
    "RecoveryError",
    "Settings",
    "Source",
    "Stepper",
    "Trace",
    "TracePoint",
    "Tracer",
    "Watching",
    "prepare_",
    "recover_",
    "reestimate_norms_",
    "training_mode_",
]
