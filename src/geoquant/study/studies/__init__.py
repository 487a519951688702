"""The studies themselves, one module each; importing it registers them."""

from geoquant.study.studies import (
    bit_allocation,
    depth,
    digits_depth,
    few_bit_training,
    low_loss_basin,
    peers,
    transformer_quantization,
)

__all__ = [
    "bit_allocation",
    "depth",
    "digits_depth",
    "few_bit_training",
    "low_loss_basin",
    "peers",
    "transformer_quantization",
]
