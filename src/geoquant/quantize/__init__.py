"""Carrying out a plan on a model: rounding, norm correction, refinement, and what the model remembers of it."""

from geoquant.quantize.activations import install_, left_in_float, quantizers_of
from geoquant.quantize.blocks import BlockTuning, find_blocks
from geoquant.quantize.kv_cache import key_value_bits, key_value_grid, quantized_keys_and_values
from geoquant.quantize.network import NetworkTuning
from geoquant.quantize.pipeline import quantize, quantize_
from geoquant.quantize.recipes import EFFORTS, NORMS, REFINEMENTS, Recipe, Refinement
from geoquant.quantize.state import QuantizedState, attach_, forget_, is_quantized, quantized_state

__all__ = [
    "EFFORTS",
    "NORMS",
    "REFINEMENTS",
    "BlockTuning",
    "NetworkTuning",
    "QuantizedState",
    "Recipe",
    "Refinement",
    "attach_",
    "find_blocks",
    "forget_",
    "install_",
    "is_quantized",
    "key_value_bits",
    "key_value_grid",
    "left_in_float",
    "quantize",
    "quantize_",
    "quantized_keys_and_values",
    "quantized_state",
    "quantizers_of",
]
