"""What is the model like here? Curvature of the loss, of the layers, and of the data they see, with evidence."""

from geoquant.geometry.evidence import Estimate
from geoquant.geometry.gauss_newton import gauss_newton_traces
from geoquant.geometry.hutchinson import hessian_traces
from geoquant.geometry.operators import condition_number

__all__ = [
    "Estimate",
    "condition_number",
    "gauss_newton_traces",
    "hessian_traces",
]
