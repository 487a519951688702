"""What is the model like here? Curvature of the loss, of the layers, and of the data they see, with evidence."""

from geoquant.geometry.condition import condition_number
from geoquant.geometry.diagonal import TensorEstimate, gauss_newton_diagonal, hessian_diagonal
from geoquant.geometry.evidence import Estimate
from geoquant.geometry.gauss_newton import gauss_newton_traces
from geoquant.geometry.hutchinson import hessian_traces
from geoquant.geometry.hvp import hessian_vector_product
from geoquant.geometry.kfac import KroneckerFactors, kronecker_factors
from geoquant.geometry.objective import Objective, make_objective
from geoquant.geometry.quadratic import QuadraticForm, displacement_gram, quadratic_form
from geoquant.geometry.spectrum import SpectralDensity, spectral_density, top_eigenvalues

__all__ = [
    "Estimate",
    "KroneckerFactors",
    "Objective",
    "QuadraticForm",
    "SpectralDensity",
    "TensorEstimate",
    "condition_number",
    "displacement_gram",
    "gauss_newton_diagonal",
    "gauss_newton_traces",
    "hessian_diagonal",
    "hessian_traces",
    "hessian_vector_product",
    "kronecker_factors",
    "make_objective",
    "quadratic_form",
    "spectral_density",
    "top_eigenvalues",
]
