"""Where does the low-loss basin end between the float weights and the quantized ones? Slices of the loss."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from geoquant.basin import Line, Marker, Plane
from geoquant.report.axes import GRIDLINE, axis, canvas, clipped, log_floor, value_axis
from geoquant.report.figures import nested
from geoquant.report.labels import plot_text, quantity
from geoquant.report.palette import OKABE_ITO, SCALE

HALF = 0.5
"""Lines of the grid are drawn every half step: the first one is where rounding turns, in the root mean square."""
RISE = "rise of the loss (nats per prediction)"
STEPS = "grid steps from the float weights (root mean square over the weights)"
FURTHEST = 1e6


def half_steps(low: float, high: float) -> list[float]:
    """Return the multiples of half a grid step within a range; none where they would lie too densely.

    >>> half_steps(-0.2, 1.1)
    [0.0, 0.5, 1.0]
    """
    first, last = math.ceil(low / HALF), math.floor(high / HALF)
    return [] if last - first > 40 else [HALF * k for k in range(first, last + 1)]


def line_points(line: Line) -> tuple[list[float], list[float], float]:
    """Return places in grid steps, rises that a logarithmic axis can show, and the floor of that axis."""
    finite = [min(value, FURTHEST) for value in line.rise]
    floor = log_floor([*(abs(value) for value in finite if value > 0), line.tolerance]) or line.tolerance
    floor = max(floor, line.tolerance / 1000)
    return [place / line.step for place in line.places], clipped(finite, floor), floor


def line_plot(line: Line) -> go.Figure:
    """Draw the rise along one direction, the basin's edge, and the codewords on it; what is not positive lies below."""
    places, rises, floor = line_points(line)
    below = [value <= floor for value in rises]
    errors = [min(each, FURTHEST) for each in line.stderr]
    low = [max(min(error, value - floor), 0.0) for error, value in zip(errors, rises, strict=True)]
    curve = go.Scatter(
        x=places,
        y=rises,
        mode="lines+markers",
        name="loss",
        meta={"label": "rise of the loss ± standard error"},
        line={"color": OKABE_ITO[0], "width": 2},
        marker={"size": 6, "symbol": ["circle-open" if each else "circle" for each in below]},
        error_y={"type": "data", "array": errors, "arrayminus": low, "thickness": 1, "width": 2},
        text=[
            f"{x:.3f} grid steps: {quantity(y)} ± {quantity(e)}"
            for x, y, e in zip(places, line.rise, line.stderr, strict=True)
        ],
        hovertemplate="%{text}<extra></extra>",
        showlegend=True,
    )
    edge = go.Scatter(
        x=[places[0], places[-1]],
        y=[line.tolerance] * 2,
        mode="lines",
        name="edge",
        meta={"label": f"the basin's edge ({line.tolerance:g} nats)"},
        line={"color": OKABE_ITO[1], "dash": "dash", "width": 2},
        hoverinfo="skip",
        showlegend=True,
    )
    marks = [
        _mark(Marker(marker.name, marker.x / line.step), _value_at(line, marker.x, floor), index)
        for index, marker in enumerate(line.markers)
    ]
    figure = go.Figure([curve, edge, *marks], canvas(400))
    figure.update_layout(xaxis=axis(STEPS), yaxis=axis("", exponentformat="power"))
    figure.update_layout(nested(value_axis(RISE, rises, floor)))
    for place in half_steps(places[0], places[-1]):
        figure.add_vline(place, line={"color": GRIDLINE, "dash": "dot", "width": 1})
    return figure


def plane_levels(plane: Plane) -> tuple[list[list[float]], float]:
    """Return log₁₀ of the rise, bounded to three decades around the basin's edge, and the edge's own."""
    edge = math.log10(plane.tolerance)
    levels = [[math.log10(max(value, 1e-12)) if value < FURTHEST else edge + 3 for value in row] for row in plane.rise]
    return [[min(max(level, edge - 1.5), edge + 2.5) for level in row] for row in levels], edge


def plane_plot(plane: Plane) -> go.Figure:
    """Draw the rise on a plane as a map, the basin's edge as a line, and the three points."""
    levels, edge = plane_levels(plane)
    ticks = [edge - 1, edge, edge + 1, edge + 2]
    surface = go.Contour(
        x=plane.xs,
        y=plane.ys,
        z=levels,
        colorscale=SCALE,
        reversescale=True,
        contours={"coloring": "heatmap", "showlines": False},
        line={"width": 0},
        customdata=[[quantity(value) for value in row] for row in plane.rise],
        hovertemplate="%{customdata} nats<extra></extra>",
        colorbar={"title": {"text": "rise (nats)"}, "tickvals": ticks, "ticktext": [f"{10**t:.2g}" for t in ticks]},
        name="rise",
        showlegend=False,
    )
    label = f"the basin's edge ({plane.tolerance:g} nats)"
    border = go.Contour(
        x=plane.xs,
        y=plane.ys,
        z=levels,
        contours={"coloring": "none", "start": edge, "end": edge, "size": 1},
        line={"color": OKABE_ITO[1], "width": 3},
        hoverinfo="skip",
        name="edge",
        meta={"label": label},
        showlegend=False,
    )
    entry = go.Scatter(  # contours have no entry in the page's legend
        x=[None],
        y=[None],
        mode="lines",
        line={"color": OKABE_ITO[1], "width": 3},
        name="edge",
        meta={"label": label},
        showlegend=True,
    )
    # The legend names them: words would drown in the dark parts of the map.
    marks = [_mark(marker, marker.y, index, "markers") for index, marker in enumerate(plane.markers)]
    figure = go.Figure([surface, border, entry, *marks], canvas(520))
    figure.update_layout(xaxis=axis(STEPS), yaxis=axis("across, grid steps"))
    for place in half_steps(plane.xs[0], plane.xs[-1]):
        figure.add_vline(place, line={"color": "rgba(255, 255, 255, 0.6)", "dash": "dot", "width": 1})
    for place in half_steps(plane.ys[0], plane.ys[-1]):
        figure.add_hline(place, line={"color": "rgba(255, 255, 255, 0.6)", "dash": "dot", "width": 1})
    return figure


SHAPES = ("circle", "x", "diamond", "triangle-up")


def _mark(marker: Marker, y: float, index: int, mode: str = "markers+text") -> go.Scatter:
    return go.Scatter(
        x=[marker.x],
        y=[y],
        mode=mode,
        text=[plot_text(marker.name)],
        textposition="top center",
        marker={
            "symbol": SHAPES[index % len(SHAPES)],
            "size": 12,
            "color": "white",
            "line": {"color": "black", "width": 1.5},
        },
        name=plot_text(marker.name),
        meta={"label": marker.name},
        hovertemplate=f"{plot_text(marker.name)}<extra></extra>",
        showlegend=True,
    )


def _value_at(line: Line, place: float, floor: float) -> float:
    """Return the rise at a marker, interpolated between the evaluated points."""
    return max(interpolate(line.places, [min(value, FURTHEST) for value in line.rise], place), floor)


def interpolate(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    """Return the value of the broken line through (xs, ys) at x, constant beyond its ends.

    >>> interpolate([0.0, 1.0], [0.0, 4.0], 0.25)
    1.0
    """
    for left, right, low, high in zip(xs, xs[1:], ys, ys[1:], strict=False):
        if left <= x <= right:
            return low + (high - low) * (x - left) / (right - left)
    return ys[0] if x < xs[0] else ys[-1]
