"""What is the model like here? Curvature of the loss, of the layers, and of the data they see, with evidence."""

from geoquant.geometry.clipping import RANGES, RangeMethod, fit_scale
from geoquant.geometry.condition import condition_number
from geoquant.geometry.curvature import (
    KNOWN_CURVATURES,
    NetworkCurvature,
    compose_curvature,
    curvature,
    curvature_sampled,
    network_curvature,
    quadratic_curvature,
    register_curvature,
)
from geoquant.geometry.diagonal import TensorEstimate, gauss_newton_diagonal, hessian_diagonal
from geoquant.geometry.energy import mean_rademacher_stretch, output_energy_sensitivity
from geoquant.geometry.evidence import Estimate
from geoquant.geometry.gauss_newton import gauss_newton_traces
from geoquant.geometry.histogram import Histogram
from geoquant.geometry.hutchinson import hessian_traces
from geoquant.geometry.hvp import hessian_vector_product
from geoquant.geometry.kfac import KroneckerFactors, kronecker_factors
from geoquant.geometry.kinks import KinkDensity, kink_density, smoothed
from geoquant.geometry.lipschitz import lipschitz, lipschitz_sampled, register_lipschitz
from geoquant.geometry.measuring import geometry_cost, measure_geometry
from geoquant.geometry.model_geometry import InputRange, Missing, ModelGeometry, SiteGeometry, Spectrum
from geoquant.geometry.objective import Objective, make_objective
from geoquant.geometry.operators import linear_map, spectral_norm, spectral_norm_bound
from geoquant.geometry.quadratic import QuadraticForm, displacement_gram, quadratic_form
from geoquant.geometry.ranges import ActivationRange, activation_ranges, range_of
from geoquant.geometry.spectrum import SpectralDensity, spectral_density, top_eigenvalues

__all__ = [
    "KNOWN_CURVATURES",
    "RANGES",
    "ActivationRange",
    "Estimate",
    "Histogram",
    "InputRange",
    "KinkDensity",
    "KroneckerFactors",
    "Missing",
    "ModelGeometry",
    "NetworkCurvature",
    "Objective",
    "QuadraticForm",
    "RangeMethod",
    "SiteGeometry",
    "SpectralDensity",
    "Spectrum",
    "TensorEstimate",
    "activation_ranges",
    "compose_curvature",
    "condition_number",
    "curvature",
    "curvature_sampled",
    "displacement_gram",
    "fit_scale",
    "gauss_newton_diagonal",
    "gauss_newton_traces",
    "geometry_cost",
    "hessian_diagonal",
    "hessian_traces",
    "hessian_vector_product",
    "kink_density",
    "kronecker_factors",
    "linear_map",
    "lipschitz",
    "lipschitz_sampled",
    "make_objective",
    "mean_rademacher_stretch",
    "measure_geometry",
    "network_curvature",
    "output_energy_sensitivity",
    "quadratic_curvature",
    "quadratic_form",
    "range_of",
    "register_curvature",
    "register_lipschitz",
    "smoothed",
    "spectral_density",
    "spectral_norm",
    "spectral_norm_bound",
    "top_eigenvalues",
]
