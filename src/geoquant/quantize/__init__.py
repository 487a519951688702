"""Carrying out a plan on a model: rounding, norm correction, and what the model remembers of it."""

from geoquant.quantize.pipeline import NORMS, quantize, quantize_
from geoquant.quantize.state import QuantizedState, attach_, is_quantized, quantized_state

__all__ = ["NORMS", "QuantizedState", "attach_", "is_quantized", "quantize", "quantize_", "quantized_state"]
