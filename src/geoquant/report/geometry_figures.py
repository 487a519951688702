"""How are the eigenvalues spread, and which layers make the error? Spectrum and waterfall."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from geoquant.errors import PlanError
from geoquant.geometry import Spectrum
from geoquant.report.axes import axis, canvas, menu
from geoquant.report.heatmaps import NARROW_LIMIT, fitted, layer_axis, row_pixels
from geoquant.report.labels import plot_text, quantity
from geoquant.report.palette import OKABE_ITO
from geoquant.report.waterfall import Tier, Waterfall

# What of a smoothed density is drawn, as a share of the peak that one eigenvalue makes: the tails below mean nothing.
DEEPEST = 0.1
CANCELLED, TOTAL = "cancellation", "error_estimate"
TIER_SYMBOLS = {"error_bound": "triangle-down", "error_estimate": "diamond", "error_observed": "circle"}
# A logarithmic axis from this factor on.
WIDE = 8.0


def spectrum_curve(spectrum: Spectrum) -> tuple[list[float], list[float], list[float], list[float]]:
    """Return (eigenvalues, density, density minus and plus its standard error), nothing below `DEEPEST`."""
    found = spectrum.density()
    low_end, high_end = float(found.nodes.min()), float(found.nodes.max())
    width = 0.01 * max(high_end - low_end, abs(high_end), 1e-30)
    places, density, error = found.curve(512, width)
    one = 1 / (spectrum.size * width * math.sqrt(2 * math.pi))
    floor = min(DEEPEST * one, 1e-3 * float(density.max()))
    low, high = ((density + sign * error).clamp(min=floor).tolist() for sign in (-1, 1))
    return places.tolist(), density.clamp(min=floor).tolist(), low, high


def spectrum_plot(spectrum: Spectrum) -> go.Figure:
    """Draw the density of the Hessian's eigenvalues, logarithmic, its standard error, and the largest ones as marks."""
    places, density, low, high = spectrum_curve(spectrum)
    band = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
    label = "density ± standard error"
    line = go.Scatter(
        x=places,
        y=density,
        mode="lines",
        name=label,
        meta={"label": label},
        line={"color": OKABE_ITO[0], "width": 2},
        hovertemplate="λ = %{x:.3g}: %{y:.3g}<extra></extra>",
        showlegend=True,
    )
    top = go.Scatter(
        x=[each.value for each in spectrum.top],
        y=[min(density)] * len(spectrum.top),
        error_x={"type": "data", "array": [each.residual for each in spectrum.top], "thickness": 1},
        mode="markers",
        name="largest eigenvalues",
        meta={"label": "largest eigenvalues"},
        marker={"symbol": "triangle-up", "size": 11, "color": OKABE_ITO[1]},
        text=[f"λ = {quantity(each.value)} ± {quantity(each.residual)} left" for each in spectrum.top],
        hovertemplate="%{text}<extra></extra>",
        showlegend=True,
    )
    shade = "rgba(0, 114, 178, 0.25)"
    traces = [
        go.Scatter(x=places, y=low, meta={"label": label}, **band),
        go.Scatter(x=places, y=high, meta={"label": label}, fill="tonexty", fillcolor=shade, **band),
        line,
        top,
    ]
    figure = go.Figure(traces, canvas(360))
    figure.update_layout(
        xaxis=axis("eigenvalue of the Hessian (nats per squared weight unit)"),
        yaxis=axis(
            "share of eigenvalues per unit", type="log", exponentformat="power", dtick=1, tickfont={"size": 10.5}
        ),
    )
    return figure


BELOW = 0.34  # of a row: the inputs lie under their mean, where its number does not cover them


def waterfall_plot(waterfalls: Sequence[Waterfall]) -> go.Figure:
    """Draw the layers' contributions down to the estimate, and above them the three tiers.

    Every plan can be selected.

    Raises:
        PlanError: there is none.
    """
    if not waterfalls:
        raise PlanError("a waterfall needs at least one plan whose error tiers were measured")
    layers = list(dict.fromkeys(name for each in waterfalls for name in each.contributions))
    rows = [*layers, CANCELLED, TOTAL]
    groups = [_traces(each, layers, index == 0) for index, each in enumerate(waterfalls)]
    below = len(rows) * row_pixels(len(rows))
    height = below + 230
    figure = go.Figure([trace for group in groups for trace in group], canvas(height))
    split = below / (height - 100)
    changes: list[tuple[list[bool], dict[str, Any]]] = [
        ([i == index for i, group in enumerate(groups) for _ in group], {"xaxis2.type": _scale(each)})
        for index, each in enumerate(waterfalls)
    ]
    title = "size of the largest output change"
    figure.update_layout(
        yaxis={**layer_axis(rows), "domain": [0, split]},
        xaxis=axis(f"{title}, contributions", anchor="y", rangemode="tozero", fixedrange=True),
        yaxis2=axis("", domain=[split + 64 / (height - 60), 1], anchor="x2", range=[2.6, -0.6], fixedrange=True)
        | {"tickvals": [0, 1, 2], "ticktext": list(TIER_SYMBOLS), "showgrid": False},
        xaxis2=axis(f"{title}, three tiers", anchor="y2", type=_scale(waterfalls[0]), rangemode="tozero")
        | {"fixedrange": True, "exponentformat": "power"},
        meta={"narrow": fitted(rows, NARROW_LIMIT)},
        updatemenus=menu([plot_text(each.label) for each in waterfalls], changes),
        barmode="overlay",
    )
    return figure


def _scale(fall: Waterfall) -> str:
    """Choose the axis on which the gap between the tiers can be seen."""
    means = fall.finite
    return "log" if means and max(means) / min(means) > WIDE else "linear"


def _traces(fall: Waterfall, layers: Sequence[str], visible: bool) -> list[Any]:
    """Draw one plan: bars that begin where the one above ends, and a row of marks for each tier."""
    starts, lengths = [], []
    reached = 0.0
    for name in layers:
        starts.append(reached)
        lengths.append(fall.contributions.get(name, 0.0))
        reached += lengths[-1]
    estimate = reached - fall.cancelled
    starts, lengths = [*starts, estimate, 0.0], [*lengths, fall.cancelled, estimate]
    colors = [OKABE_ITO[0]] * len(layers) + ["#8c8c8c", OKABE_ITO[1]]
    words = [*layers, "cancels between layers", TOTAL]
    bars = go.Bar(
        x=lengths,
        base=starts,
        y=list(range(len(lengths))),
        orientation="h",
        marker={"color": colors},
        customdata=[f"{plot_text(word)}: {quantity(value)}" for word, value in zip(words, lengths, strict=True)],
        hovertemplate="%{customdata}<extra></extra>",
        visible=visible,
        showlegend=False,
    )
    return [bars, *(_tier(tier, row, fall, visible) for row, tier in enumerate(fall.tiers))]


def _tier(tier: Tier, row: int, fall: Waterfall, visible: bool) -> go.Scatter:
    """Draw the inputs as small marks and their mean as a large one with its number."""
    values = [value for value in tier.values if math.isfinite(value) and value > 0]
    mean, gap = tier.mean, fall.gap(tier)
    drawn = mean is not None and math.isfinite(mean) and mean > 0
    text = f" {quantity(mean)}" + (f" ({gap:.3g}×)" if gap is not None and row < 2 else "")
    return go.Scatter(
        x=[*values, mean] if drawn else values,
        y=[row + BELOW] * len(values) + [row] * drawn,
        xaxis="x2",
        yaxis="y2",
        mode="markers+text",
        marker={
            "symbol": TIER_SYMBOLS[tier.name],
            "size": [5] * len(values) + [12] * drawn,
            "color": OKABE_ITO[(3, 1, 2)[row]],
        },
        text=[""] * len(values) + [text] * drawn,
        textposition="middle left" if row == 0 or _scale(fall) == "linear" else "middle right",
        hovertemplate=f"{tier.name} ({plot_text(tier.method)}): %{{x:.3g}}<extra></extra>",
        cliponaxis=False,
        visible=visible,
        showlegend=False,
    )
