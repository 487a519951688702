"""How is the whole geometry of a model measured, at what price, and what if a part of it cannot be?

Each measure stands on its own: what this model or data does not allow is named in the result with the reason, and the
rest is measured all the same. Traces take all the data; spectrum and curvature, which need Hessian-vector products,
take a few samples and say how many.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from geoquant.errors import GeoquantError
from geoquant.geometry.condition import condition_number
from geoquant.geometry.curvature import NetworkCurvature, network_curvature
from geoquant.geometry.evidence import Estimate
from geoquant.geometry.gauss_newton import EXACT_COLUMNS
from geoquant.geometry.hutchinson import both_traces
from geoquant.geometry.hvp import GRAPH_COST, PRODUCT_COST
from geoquant.geometry.kinks import kink_density
from geoquant.geometry.model_geometry import InputRange, Missing, ModelGeometry, SiteGeometry, Spectrum
from geoquant.geometry.objective import Objective, make_objective
from geoquant.geometry.operators import CONVOLUTIONS, TRANSPOSED, spectral_norm
from geoquant.geometry.pieces import split
from geoquant.geometry.ranges import activation_ranges, hooked
from geoquant.geometry.spectrum import spectral_density
from geoquant.geometry.sweep import sweep
from geoquant.models import Forward, Site, batch_size, get_weight, inference, predict
from geoquant.progress import task

# Samples, random starts, steps each and leading eigenvalues of the spectrum; points and sharpness of the curvature.
SPECTRUM_SAMPLES, SPECTRUM_PROBES, SPECTRUM_STEPS, TOP = 64, 2, 24, 3
CURVATURE_POINTS, SHARPNESS = 4, 10.0
# Lanczos keeps a vector of all weights per step: at most this many numbers, 1 GiB in float32, and no less than 6 steps.
_MEMORY, _LEAST_STEPS = 1 << 28, 6

T = TypeVar("T")


@dataclass(eq=False)
class _Notes:
    """Does what can be done, and keeps why the rest cannot."""

    missing: list[Missing] = field(default_factory=list)

    def add(self, measure: str, reason: str, site: str = "") -> None:
        self.missing.append(Missing(measure, site, reason))

    def attempt(self, measure: str, do: Callable[[], T], site: str = "") -> T | None:
        """Return what `do` returns, or None; a layer's own code may raise anything, and the other measures go on."""
        try:
            return do()
        except GeoquantError as error:
            self.add(measure, str(error), site)
        except Exception as error:
            first = str(error).strip().splitlines()
            self.add(measure, f"{type(error).__name__}: {first[0] if first else 'no message'}", site)
        return None


def measure_geometry(
    model: nn.Module,
    batches: Sequence[Any],
    sites: Sequence[Site],
    *,
    forward: Forward | None = None,
    probes: int = 8,
    seed: int = 0,
) -> ModelGeometry:
    """Measure all that this package knows of `model` on `batches`; the model is left as it was.

    Args:
        model: any module.
        batches: with labels or without; without them the loss is the divergence from the model's own predictions,
            which has the same Gauss-Newton matrix as cross-entropy.
        sites: the weights to look at.
        forward: how to call the model.
        probes: random directions where a trace has no exact form; at least 2.
        seed: of every random draw.

    Returns:
        what could be measured; the rest is named in its `missing`.

    >>> from geoquant.models import find_sites
    >>> net = nn.Sequential(nn.Linear(2, 2, bias=False))
    >>> _ = nn.init.zeros_(net[0].weight)
    >>> found = measure_geometry(net, [(torch.tensor([[3.0, 4.0]]), torch.tensor([0]))], find_sites(net))
    >>> print(found.site("0").gauss_newton_trace)  # tr(diag(p) − ppᵀ)·‖x‖² = 0.5·25
    12.5 (exact: gauss-newton norms)
    """
    start = time.perf_counter()
    notes = _Notes()
    with task("geometry", 5) as advance:
        objective = notes.attempt("loss", lambda: _objective(model, batches, sites, forward, notes))
        traces = _traces(objective, sites, probes, seed, notes)
        advance()
        layers = _layers(model, batches, sites, traces, forward, notes)
        advance()
        spectrum = None if objective is None else notes.attempt("spectrum", lambda: _spectrum(objective, seed))
        advance()
        whole = notes.attempt("curvature in the input", lambda: _curvature(model, batches, forward, seed))
        advance()
        kinks = whole.kinks if whole else None
        if kinks is None:
            kinks = notes.attempt("kink density", lambda: kink_density(model, batches, forward=forward))
        advance()
    samples = sum(batch_size(batch) for batch in batches)
    return ModelGeometry(
        "none" if objective is None or objective.criterion is None else objective.criterion.name,
        samples,
        layers,
        spectrum,
        whole.value if whole else None,
        whole.smoothed if whole else None,
        SHARPNESS,
        kinks,
        tuple(notes.missing),
        _spent(traces, spectrum, whole, samples),
        time.perf_counter() - start,
    )


def geometry_cost(
    model: nn.Module,
    batches: Sequence[Any],
    sites: Sequence[Site],
    *,
    forward: Forward | None = None,
    probes: int = 8,
) -> float:
    """Say, before starting, what `measure_geometry` will cost in forward-equivalents over `batches`.

    The norms and condition numbers of weights are not counted: they never run the model. Looks at one sample.
    """
    samples = sum(batch_size(batch) for batch in batches)
    one = split(batches[0], 1)[:1]
    objective = _Notes().attempt("loss", lambda: _objective(model, one, sites, forward, _Notes()))
    if objective is None:
        return 2.0
    with inference(model):
        outputs = predict(model, one[0], forward)[0].numel()
    traces = 2.0 + 2.0 * (outputs if outputs <= EXACT_COLUMNS else probes)
    if objective.criterion is not None and objective.criterion.name != "kl" and not _piecewise_affine(objective):
        traces += GRAPH_COST + PRODUCT_COST * probes
    spectrum = SPECTRUM_PROBES * SPECTRUM_STEPS * (GRAPH_COST + PRODUCT_COST) * min(1.0, SPECTRUM_SAMPLES / samples)
    return traces + spectrum + 2.0  # ranges and kinks


def _piecewise_affine(objective: Objective) -> bool:
    with objective.studied():
        return all(sweep(objective, objective.batches[0]).structure.affine)


def _objective(
    model: nn.Module, batches: Sequence[Any], sites: Sequence[Site], forward: Forward | None, notes: _Notes
) -> Objective:
    """Take the loss of the labels where they fit, else the divergence from the model's own predictions."""
    objective = make_objective(model, batches, sites, forward=forward)
    try:
        with objective.studied(), torch.no_grad():
            objective.total(objective.batches[0])
    except (GeoquantError, RuntimeError, IndexError) as error:
        notes.add("loss of the labels", f"{error}; the divergence from the model's own predictions was taken instead")
        return make_objective(model, batches, sites, forward=forward, loss="kl")
    return objective


Traces = dict[str, tuple[Estimate, Estimate]]


def _traces(objective: Objective | None, sites: Sequence[Site], probes: int, seed: int, notes: _Notes) -> Traces:
    """Return site → (Gauss-Newton trace, Hessian trace), both from one go over the data."""
    if objective is None:
        return {}
    found = notes.attempt("traces", lambda: both_traces(objective, probes=probes, seed=seed))
    if found is None:
        return {}
    pairs = list(zip(*found, strict=True))
    return {site.name: pairs[place] for site, place in zip(sites, objective.position, strict=True)}


def _layers(
    model: nn.Module,
    batches: Sequence[Any],
    sites: Sequence[Site],
    traces: Traces,
    forward: Forward | None,
    notes: _Notes,
) -> tuple[SiteGeometry, ...]:
    """Gather what belongs to each site: traces, norms of the weight, and the range of what comes in."""
    shapes = notes.attempt("input sizes", lambda: _input_shapes(model, batches[0], sites, forward)) or {}
    ranges = {}
    if shapes:
        ranges = notes.attempt("input ranges", lambda: _input_ranges(model, batches, list(shapes), forward)) or {}
    layers = []
    with task("norms of the weights", len(sites)) as advance:
        for site in sites:
            owner, weight = _owner(site), get_weight(model, site)
            if owner not in shapes:
                notes.add("input range", "its layer is never called with a real-valued tensor", site.name)
            norm = notes.attempt("spectral norm", lambda: _norm(model, site, weight, shapes), site.name)  # noqa: B023
            ratio = notes.attempt("condition number", lambda: condition_number(site.matrix(weight)), site.name)  # noqa: B023
            gauss, hessian = traces.get(site.name, (None, None))
            layers.append(SiteGeometry(site.name, site.weights, gauss, hessian, norm, ratio, ranges.get(owner)))
            advance()
    return tuple(layers)


def _owner(site: Site) -> str:
    return site.parameter.rpartition(".")[0]


def _input_shapes(
    model: nn.Module, batch: Any, sites: Sequence[Site], forward: Forward | None
) -> dict[str, tuple[int, ...]]:
    """Return module → shape of its input without the batch axis, for modules that take real numbers."""
    shapes: dict[str, tuple[int, ...]] = {}

    def keep(name: str, values: Tensor) -> None:
        shapes.setdefault(name, tuple(values.shape[1:]))

    with inference(model), hooked(model, [_owner(site) for site in sites], "inputs", keep):
        predict(model, split(batch, 1)[0], forward)
    return shapes


def _input_ranges(
    model: nn.Module, batches: Sequence[Any], names: list[str], forward: Forward | None
) -> dict[str, InputRange]:
    found = activation_ranges(model, batches, names, forward=forward)
    return {
        name: InputRange(each.lowest, each.highest, each.percentile(99.9), each.rms, each.largest_norm)
        for name, each in found.items()
    }


def _norm(model: nn.Module, site: Site, weight: Tensor, shapes: dict[str, tuple[int, ...]]) -> Estimate:
    """Take a convolution as the operator that it is at the size it sees, any other weight as a matrix."""
    layer = model.get_submodule(_owner(site))
    if isinstance(layer, CONVOLUTIONS + TRANSPOSED):
        return spectral_norm(layer, shapes.get(_owner(site)))
    return spectral_norm(site.matrix(weight))


def _spectrum(objective: Objective, seed: int) -> Spectrum:
    """Take the first pieces of the data, the whole of the weights."""
    few: list[Any] = []
    for piece in objective.batches:
        few.append(piece)
        if sum(batch_size(each) for each in few) >= SPECTRUM_SAMPLES:
            break
    size = sum(parameter.numel() for parameter in objective.unique)
    room = _MEMORY // size
    if room < _LEAST_STEPS:
        raise GeoquantError(
            f"Lanczos on {size:,} weights at once needs {4 * size * _LEAST_STEPS / 2**30:.0f} GiB; measure fewer layers"
        )
    density = spectral_density(
        objective.model,
        few,
        objective.parameters,
        loss=objective.criterion.name if objective.criterion is not None else "kl",
        forward=objective.forward,
        probes=SPECTRUM_PROBES,
        steps=min(SPECTRUM_STEPS, room),
        seed=seed,
    )
    nodes, weights = (tuple(map(tuple, each.tolist())) for each in (density.nodes, density.weights))
    samples = sum(batch_size(each) for each in few)
    return Spectrum(density.top(TOP), nodes, weights, size, samples, density.cost)


def _curvature(model: nn.Module, batches: Sequence[Any], forward: Forward | None, seed: int) -> NetworkCurvature:
    return network_curvature(model, batches, beta=SHARPNESS, points=CURVATURE_POINTS, forward=forward, seed=seed)


def _spent(traces: Traces, spectrum: Spectrum | None, whole: NetworkCurvature | None, samples: int) -> float:
    """Add up what was spent, in forwards over all of the data."""
    cost = max((hessian.cost for _, hessian in traces.values()), default=0.0) + 2.0
    if spectrum is not None:
        cost += spectrum.cost * spectrum.samples / samples
    if whole is not None:
        sampled = [each.cost for each in (whole.value, whole.smoothed) if each is not None and not each.exact]
        cost += sum(sampled) * min(1.0, CURVATURE_POINTS / samples)
    return cost
