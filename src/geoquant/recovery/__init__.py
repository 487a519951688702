"""Quantization-aware training of a quantized model: latent weights, learned steps, and an ordinary model at the end."""

from geoquant.recovery.feeding import Source
from geoquant.recovery.latents import Latents, prepare_
from geoquant.recovery.objective import Objective
from geoquant.recovery.recovering import Recovered, recover_
from geoquant.recovery.settings import RecoveryError, Settings

__all__ = ["Latents", "Objective", "Recovered", "RecoveryError", "Settings", "Source", "prepare_", "recover_"]
