"""What the page says of the model's geometry and of a plan's error: figures, words and tables."""

from __future__ import annotations

from collections.abc import Sequence

from geoquant.geometry import Estimate, ModelGeometry, Spectrum
from geoquant.plan import Plan
from geoquant.report.geometry_figures import spectrum_plot, waterfall_plot
from geoquant.report.heatmaps import curvature_map, measures_of
from geoquant.report.labels import plan_labels, quantity
from geoquant.report.panels import Panel
from geoquant.report.tables import Cell, Table, number_cell
from geoquant.report.waterfall import Waterfall

_SITE_COLUMNS = ("layer", "weights", "Gauss-Newton trace", "Hessian trace", "trace per weight", "spectral norm")


def curvature_panel(geometry: ModelGeometry, plans: Sequence[Plan]) -> Panel:
    """Show which layers the loss is curved in, and where the bits went."""
    measure = measures_of(geometry)[0]
    found = [(site.site, each.value) for site in geometry.sites if (each := measure.read(site)) is not None]
    ranked = sorted(found, key=lambda pair: -pair[1])
    top = ", ".join(f"{name} ({quantity(value)})" for name, value in ranked[:3])
    marks = " Marks show the bits that each plan chose." if plans else ""
    return Panel(
        "curvature-map",
        "Where the loss is curved",
        "Colour is a measure of each layer; darker is larger, each shade is a factor. Traces are in nats per squared "
        f"weight unit.{marks}",
        f"Map of {len(geometry.sites)} layers by {measure.title}. Largest: {top}." + _widths(plans),
        curvature_map(geometry, plans),
        (geometry_table(geometry),),
        choose="Measure",
    )


def _widths(plans: Sequence[Plan]) -> str:
    parts = []
    for label, plan in zip(plan_labels(plans), plans, strict=True):
        widths = [grid.bits for grid in plan.grids]
        parts.append(f" {label}: {min(widths):g} to {max(widths):g} bits.")
    return "".join(parts)


def spectrum_panel(spectrum: Spectrum) -> Panel:
    """Show how the eigenvalues of the loss are spread."""
    top = ", ".join(quantity(each.value) for each in spectrum.top)
    trace = spectrum.density().moment(1)
    return Panel(
        "spectrum",
        "How the loss is curved",
        "Density of the eigenvalues of the loss's Hessian by Lanczos quadrature, smoothed by 1 % of the range. Most "
        "directions are flat; the few steep ones are where rounding hurts.",
        f"Density of {spectrum.size:,} eigenvalues over {spectrum.samples:,} samples, from "
        f"{quantity(min(map(min, spectrum.nodes)))} to {quantity(max(map(max, spectrum.nodes)))}; the trace is "
        f"{quantity(trace.value)} ± {quantity(trace.stderr)}. Largest: {top}.",
        spectrum_plot(spectrum),
        (spectrum_table(spectrum),),
    )


def waterfall_panel(waterfalls: Sequence[Waterfall]) -> Panel:
    """Show what each layer does to the output, and how far theory is from what is seen."""
    parts = []
    for fall in waterfalls:
        tiers = ", ".join(f"{tier.name} {quantity(tier.mean)}" for tier in fall.tiers)
        worst = sorted(fall.contributions, key=lambda name: -fall.contributions[name])[:3]
        parts.append(f"{fall.label}: {tiers}. Largest contributions: {', '.join(worst) or 'none'}.")
    count = max(len(tier.values) for fall in waterfalls for tier in fall.tiers)
    return Panel(
        "waterfall",
        "Which layers make the error",
        f"Largest change of an output, mean over {count} calibration inputs. Below, the first-order contribution of "
        "each layer; contributions add as vectors, so a part cancels. Above, the three tiers of the same quantity: the "
        f"bound holds everywhere within ±{quantity(waterfalls[0].radius)} of the inputs, the estimate is first order, "
        "the observed one was found there; × is the gap to it.",
        " ".join(parts),
        waterfall_plot(waterfalls),
        tuple(table for fall in waterfalls for table in waterfall_tables(fall)),
        choose="Plan",
    )


def evidence_cell(estimate: Estimate | None) -> Cell:
    """Write a value with its standard error, sorting by the value."""
    if estimate is None:
        return number_cell(None, "–")
    more = f" ± {quantity(estimate.stderr)}" if estimate.stderr else ""
    return number_cell(estimate.value, f"{quantity(estimate.value)}{more}")


def geometry_table(geometry: ModelGeometry) -> Table:
    """List every measure of every layer."""
    columns = (*_SITE_COLUMNS, "condition number", "inputs", "largest input norm", "method of the traces")
    rows = []
    for site in geometry.sites:
        measures = (site.gauss_newton_trace, site.hessian_trace, site.trace_per_weight, site.spectral_norm)
        inputs = site.inputs
        span = "–" if inputs is None else f"{quantity(inputs.lowest)} to {quantity(inputs.highest)}"
        norm = None if inputs is None else inputs.largest_norm
        trace = site.hessian_trace
        row = [Cell(site.site), number_cell(site.weights, f"{site.weights:,}")]
        row += [evidence_cell(each) for each in (*measures, site.condition_number)]
        row += [Cell(span), number_cell(norm, quantity(norm)), Cell("–" if trace is None else trace.method)]
        rows.append(tuple(row))
    numeric = (False, *(True,) * 8, False)
    return Table(
        f"Geometry of each layer ({geometry.loss}, {geometry.samples:,} samples)", columns, numeric, tuple(rows)
    )


def network_table(geometry: ModelGeometry) -> Table:
    """List what holds for the whole network, and what could not be measured."""
    smooth = f"the same with kinks smoothed (β = {geometry.sharpness:g})"
    facts: list[tuple[str, Estimate | None]] = [("curvature κ in the input", geometry.curvature)]
    facts.append((smooth, geometry.smoothed_curvature))
    kinks = geometry.kinks
    if kinks is not None:
        facts.append((f"share of pre-activations within {100 * kinks.distance:g} % of a kink", kinks.overall))
    rows = [(Cell(name), evidence_cell(each), Cell(_how(each))) for name, each in facts if each is not None]
    for each in geometry.missing:
        what = f"{each.measure} of {each.site}" if each.site else each.measure
        rows.append((Cell(what), number_cell(None, "–"), Cell(f"not measured: {each.reason}")))
    return Table("The network as a whole", ("measure", "value", "how"), (False, True, False), tuple(rows))


def _how(estimate: Estimate) -> str:
    return f"{estimate.method}; {estimate.note}" if estimate.note else estimate.method


def spectrum_table(spectrum: Spectrum) -> Table:
    """List the largest eigenvalues."""
    rows = tuple(
        (
            Cell(str(rank)),
            number_cell(each.value, quantity(each.value)),
            Cell(quantity(each.residual)),
            Cell(each.method),
        )
        for rank, each in enumerate(spectrum.top, start=1)
    )
    columns = ("rank", "eigenvalue", "residual", "method")
    return Table("Largest eigenvalues of the Hessian", columns, (False, True, True, False), rows)


def waterfall_tables(fall: Waterfall) -> tuple[Table, Table]:
    """List contributions and tiers of one plan."""
    rows = [(Cell(name), number_cell(value, quantity(value))) for name, value in fall.contributions.items()]
    rows.append((Cell("cancels between layers"), number_cell(-fall.cancelled, quantity(-fall.cancelled))))
    layers = Table(f"Contributions of the layers, {fall.label}", ("layer", "size"), (False, True), tuple(rows))
    tiers = tuple(
        (
            Cell(tier.name),
            number_cell(tier.mean, quantity(tier.mean)),
            number_cell(gap := fall.gap(tier), "–" if gap is None else f"{quantity(gap)}×"),
            Cell(tier.method or "not available"),
            Cell(tier.note),
        )
        for tier in fall.tiers
    )
    columns = ("tier", "mean", "of observed", "method", "why")
    return layers, Table(f"Three tiers of the error, {fall.label}", columns, (False, True, True, False, False), tiers)
