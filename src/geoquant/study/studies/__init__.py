"""The studies themselves, one module each; importing it registers them."""

from geoquant.study.studies import bit_allocation, digits_depth

__all__ = ["bit_allocation", "digits_depth"]
