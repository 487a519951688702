"""What is one model like on one set of data, all measures together?

`ModelGeometry` is the value that `geoquant.geometry.measuring.measure_geometry` returns, that a profile stores, and
that a report draws: per site traces, norms, condition number and the range of what comes in; for the network its
spectrum, its curvature in the input, and how close the data comes to its kinks. Every number is an `Estimate`, with
standard error or "exact", method and cost. What could not be measured is None here, and named in `missing` with the
reason. It speaks of the calibration data that it was measured on, and of nothing else.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import torch

from geoquant.errors import LayerNameError, suggest
from geoquant.geometry.evidence import Estimate
from geoquant.geometry.kinks import KinkDensity
from geoquant.geometry.spectrum import SpectralDensity


@dataclass(frozen=True)
class Missing:
    """A measure that this model, or this data, does not allow.

    Attributes:
        measure: what was to be measured.
        site: name of the site; empty for the whole network.
        reason: why not.
    """

    measure: str
    site: str
    reason: str


@dataclass(frozen=True)
class InputRange:
    """What one site takes in, over all batches; see `geoquant.geometry.ActivationRange`.

    Attributes:
        lowest, highest: extremes.
        central: (low, high) that leave out one value in a thousand.
        rms: root mean square.
        largest_norm: largest Euclidean norm of one sample.
    """

    lowest: float
    highest: float
    central: tuple[float, float]
    rms: float
    largest_norm: float


@dataclass(frozen=True)
class SiteGeometry:
    """The measures of one quantizable weight.

    Attributes:
        site: its name.
        weights: number of weights.
        gauss_newton_trace: tr(G_l) of the mean loss, nats per squared weight unit; needs no labels for cross-entropy.
        hessian_trace: tr(H_l); equal to it where the network is piecewise affine in this layer.
        spectral_norm: of the operator; for a convolution the real one, at the input size seen.
        condition_number: of the weight as a matrix.
        inputs: range of what comes in.
    """

    site: str
    weights: int
    gauss_newton_trace: Estimate | None = None
    hessian_trace: Estimate | None = None
    spectral_norm: Estimate | None = None
    condition_number: Estimate | None = None
    inputs: InputRange | None = None

    @property
    def trace_per_weight(self) -> Estimate | None:
        """Return the mean diagonal entry of the Gauss-Newton block.

        >>> SiteGeometry("fc", 4, Estimate(2.0, stderr=0.4, samples=8, method="signs")).trace_per_weight.value
        0.5
        """
        trace = self.gauss_newton_trace
        if trace is None:
            return None
        return dataclasses.replace(trace, value=trace.value / self.weights, stderr=trace.stderr / self.weights)


@dataclass(frozen=True)
class Spectrum:
    """The eigenvalues of the loss's Hessian in the weights of all sites.

    Attributes:
        top: the largest ones, descending.
        nodes: (probes, steps) Ritz values.
        weights: (probes, steps), each row sums to 1.
        size: number of eigenvalues.
        samples: calibration samples looked at.
        cost: forward-equivalents over those samples, of nodes and top together.
    """

    top: tuple[Estimate, ...]
    nodes: tuple[tuple[float, ...], ...]
    weights: tuple[tuple[float, ...], ...]
    size: int
    samples: int
    cost: float

    def density(self) -> SpectralDensity:
        """Return the distribution, to be smoothed into a curve.

        >>> spectrum = Spectrum((), ((0.0, 2.0), (0.0, 2.0)), ((0.5, 0.5), (0.5, 0.5)), 10, 1, 0.0)
        >>> spectrum.density().moment(1).value  # the trace
        10.0
        """
        nodes, weights = (torch.tensor(rows, dtype=torch.float64) for rows in (self.nodes, self.weights))
        return SpectralDensity(nodes, weights, self.size, self.cost)


@dataclass(frozen=True)
class ModelGeometry:
    """All measures of one model on one set of data.

    Attributes:
        loss: whose Hessian was taken: "cross_entropy", "squared_error", or "kl" to the model's own predictions.
        samples: calibration samples given.
        sites: in order of the model.
        spectrum: of the whole network.
        curvature: κ of the network in its input.
        smoothed_curvature: the same with every rectifier replaced by a softplus of sharpness `sharpness`.
        sharpness: of that softplus.
        kinks: share of pre-activations near a kink.
        missing: what could not be measured, and why.
        cost: forward-equivalents over the calibration set, all measures together.
        seconds: wall time; left out of comparisons.
    """

    loss: str
    samples: int
    sites: tuple[SiteGeometry, ...]
    spectrum: Spectrum | None
    curvature: Estimate | None
    smoothed_curvature: Estimate | None
    sharpness: float
    kinks: KinkDensity | None
    missing: tuple[Missing, ...]
    cost: float
    seconds: float = field(compare=False, default=0.0)

    def site(self, name: str) -> SiteGeometry:
        """Return the measures of one site.

        Raises:
            LayerNameError: nothing was measured under that name.
        """
        found = {each.site: each for each in self.sites}
        if name not in found:
            raise LayerNameError(f"no geometry was measured for '{name}'{suggest(name, found)}")
        return found[name]
