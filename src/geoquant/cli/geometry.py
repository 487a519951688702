"""The geometry of a model as a person at the terminal reads it."""

from __future__ import annotations

from geoquant.geometry import Estimate, ModelGeometry, SiteGeometry
from geoquant.plan import align

_LOSSES = {"kl": "the divergence from the model's own predictions"}
_HEADINGS = ("layer", "weights", "GN trace", "H trace", "trace/weight", "spectral norm", "condition", "inputs")


def number(estimate: Estimate | None) -> str:
    """Write an estimate in short: a standard error where there is one, ``~`` before what has not converged.

    >>> number(Estimate.known(0.25, "softmax")), number(Estimate(3.0, stderr=0.1, samples=8)), number(None)
    ('0.25', '3 ± 0.1', '–')
    """
    if estimate is None:
        return "–"
    if estimate.stderr:
        return f"{estimate.value:.4g} ± {estimate.stderr:.1g}"
    return f"{estimate.value:.4g}" if not estimate.note.startswith("not converged") else f"~{estimate.value:.4g}"


def geometry_text(geometry: ModelGeometry) -> str:
    """Show a row per layer, what holds for the whole network, and what could not be measured."""
    table = align([_HEADINGS, *(_row(site) for site in geometry.sites)], (False, *[True] * (len(_HEADINGS) - 1)))
    loss = _LOSSES.get(geometry.loss, geometry.loss.replace("_", " "))
    lines = [
        f"geometry of {loss} over {geometry.samples:,} samples; a number without ± is exact or converged",
        "",
        table,
        "",
        *_network(geometry),
        f"cost: {geometry.cost:.1f} forward-equivalents, {geometry.seconds:.1f} s",
    ]
    for each in geometry.missing:
        lines.append(f"not measured: {each.measure}{' of ' + each.site if each.site else ''}: {each.reason}")
    return "\n".join(lines)


def _row(site: SiteGeometry) -> tuple[str, ...]:
    inputs = "–" if site.inputs is None else f"[{site.inputs.lowest:.3g}, {site.inputs.highest:.3g}]"
    return (
        site.site,
        f"{site.weights:,}",
        number(site.gauss_newton_trace),
        number(site.hessian_trace),
        number(site.trace_per_weight),
        number(site.spectral_norm),
        number(site.condition_number),
        inputs,
    )


def _network(geometry: ModelGeometry) -> list[str]:
    """Say what holds for the network as a whole."""
    lines = []
    if geometry.spectrum is not None:
        top = ", ".join(f"{each.value:.4g} (± {each.residual:.1g} left)" for each in geometry.spectrum.top)
        lines.append(f"largest Hessian eigenvalues over {geometry.spectrum.samples} samples: {top}")
    if geometry.curvature is not None:
        lines.append(f"curvature κ in the input: {_said(geometry.curvature)}")
    if geometry.smoothed_curvature is not None:
        lines.append(f"with kinks smoothed (β = {geometry.sharpness:g}): {_said(geometry.smoothed_curvature)}")
    if geometry.kinks is not None:
        share = geometry.kinks.overall
        lines.append(
            f"kink density: {100 * share.value:.3g} % ± {100 * share.stderr:.1g} of pre-activations within "
            f"{100 * geometry.kinks.distance:g} % of their rms from a kink"
        )
    return lines


def _said(estimate: Estimate) -> str:
    """Write a value with its evidence; the largest of a few points has no standard error to speak of."""
    if estimate.exact or estimate.stderr:
        return str(estimate)
    return f"{estimate.value:.4g} ({estimate.method}, {estimate.samples} samples; {estimate.note})"
