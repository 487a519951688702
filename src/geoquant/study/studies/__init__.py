"""The studies themselves, one module each; importing it registers them."""

from geoquant.study.studies import digits_depth

__all__ = ["digits_depth"]
