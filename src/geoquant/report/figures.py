"""What was measured and what came of it, as curves and bars. Heatmaps are in `heatmaps`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from geoquant.errors import PlanError
from geoquant.evaluation import Mean
from geoquant.grids import Grid
from geoquant.report.axes import OTHER_GRIDS, axis, by_width, canvas, clipped, family, log_floor, menu, value_axis
from geoquant.report.labels import duration, measured, plot_text, quantity, unit_text
from geoquant.report.palette import OKABE_ITO, Style, series, styles
from geoquant.report.sweep import Point
from geoquant.sensitivity import DamageTable, Profile

# From the first layer to the last; each end and the middle stand out on white and on black.
DEPTH_SCALE = ("#0072B2", "#CC79A7", "#E69F00")
FEW_LAYERS = 6


def damage_curves(profile: Profile) -> go.Figure:
    """Draw damage against bits, a line per layer with error bars of one standard error.

    Every predictor can be selected, and every family of grids where several were measured. Values that are not
    positive sit on the lower edge of the logarithmic axis as open markers.
    """
    colors = _layer_colors(len(profile.tables[0].sites))
    choices = [(table, name, columns) for table in profile.tables for name, columns in _families(table.grids).items()]
    several = len(_families(profile.grids)) > 1
    labels = [f"{table.predictor}, {name}" if several else table.predictor for table, name, _ in choices]
    groups = [_curves(table, columns, colors, visible=index == 0) for index, (table, _, columns) in enumerate(choices)]
    figure = go.Figure([trace for group in groups for trace in group], canvas(460))
    changes = []
    for index, (table, _, columns) in enumerate(choices):
        values = [row[j] for row in table.damage for j in columns]
        title = plot_text(f"{table.predictor} ({unit_text(table.unit)})")
        visible = [i == index for i, group in enumerate(groups) for _ in group]
        changes.append((visible, value_axis(title, values, log_floor(values))))
    figure.update_layout(
        xaxis=axis("bits per weight (codes)", dtick=1),
        yaxis=axis("", exponentformat="power"),
        updatemenus=menu(labels, changes),
    )
    figure.update_layout(nested(changes[0][1]))
    return figure


def nested(changes: dict[str, Any]) -> dict[str, Any]:
    """Turn plotly's dotted paths into its underscored ones, which Python understands."""
    return {path.replace(".", "_"): value for path, value in changes.items()}


def _families(grids: Sequence[str]) -> dict[str, list[int]]:
    """Group the columns that differ in width only, each group by width."""
    groups: dict[str, list[int]] = {}
    for column in by_width(grids):
        groups.setdefault(family(grids[column]), []).append(column)
    if OTHER_GRIDS in groups:
        groups[OTHER_GRIDS] = groups.pop(OTHER_GRIDS)  # last
    return groups


def _layer_colors(layers: int) -> list[str]:
    """Give few layers distinct colours, many layers a scale from first to last."""
    if layers <= FEW_LAYERS:
        return list(OKABE_ITO[:layers])
    shares = [index / (layers - 1) for index in range(layers)]
    colors: list[str] = sample_colorscale(list(DEPTH_SCALE), shares)
    return colors


def _curves(table: DamageTable, columns: Sequence[int], colors: Sequence[str], visible: bool) -> list[go.Scatter]:
    """Draw one line per layer of one table."""
    floor = log_floor(row[j] for row in table.damage for j in columns)
    bits = [Grid.parse(table.grids[j]).bits for j in columns]
    traces = []
    for row, site in enumerate(table.sites):
        damage = [table.damage[row][j] for j in columns]
        stderr = [table.stderr[row][j] for j in columns]
        shown = clipped(damage, floor)
        below = [y if floor is None else max(min(e, y - floor), 0.0) for y, e in zip(shown, stderr, strict=True)]
        zero = [floor is not None and value < floor for value in damage]
        traces.append(
            go.Scatter(
                x=bits,
                y=shown,
                mode="lines+markers",
                name=plot_text(site),
                meta={"layer": site, "label": site},
                visible=visible,
                showlegend=len(table.sites) <= FEW_LAYERS,
                line={"color": colors[row], "width": 1.75},
                marker={"size": 6, "symbol": ["circle-open" if flag else "circle" for flag in zero]},
                error_y={"type": "data", "array": stderr, "arrayminus": below, "thickness": 1, "width": 2},
                text=[
                    f"{plot_text(site)}<br>{table.grids[j]}: {quantity(value)} ± {quantity(error)}"
                    for j, value, error in zip(columns, damage, stderr, strict=True)
                ],
                hovertemplate="%{text}<extra></extra>",
            )
        )
    return traces


@dataclass(frozen=True)
class Metric:
    """What the Pareto plot can show on its y axis: title, whether logarithmic, how to read a point, display factor."""

    title: str
    log: bool
    read: Callable[[Point], Mean]
    factor: float
    float_line: bool


METRICS = (
    Metric("accuracy (%)", False, lambda point: point.accuracy, 100.0, True),
    Metric("KL to the float model (nats per prediction)", True, lambda point: point.kl, 1.0, False),
    Metric("cross-entropy (nats per prediction)", True, lambda point: point.cross_entropy, 1.0, True),
)


@dataclass(frozen=True)
class Drawing:
    """How the points of one metric are drawn: floor of a logarithmic axis, bytes per x unit, shown at first."""

    metric: Metric
    floor: float | None
    unit: float
    visible: bool


def pareto(points: Sequence[Point], float_point: Point | None = None) -> go.Figure:
    """Draw accuracy (or KL, or cross-entropy) against bytes: a line per method, uniform families grey and dashed.

    The float model is a dotted line. Error bars are one standard error. Hovering shows label, average bits and KL.

    Raises:
        PlanError: there is no point.
    """
    if not points:
        raise PlanError("accuracy against bytes needs at least one evaluated plan")
    lines = series(points)
    look = styles(list(lines))
    groups = []
    for index, metric in enumerate(METRICS):
        floor = log_floor(metric.read(point).value for point in points) if metric.log else None
        drawing = Drawing(metric, floor, _unit(points)[0], index == 0)
        group = [_method_line(line, name, look[name], drawing) for name, line in lines.items()]
        if float_point is not None and metric.float_line:
            group.append(_float_line(points, float_point, metric, index == 0))
        groups.append(group)
    figure = go.Figure([trace for group in groups for trace in group], canvas(480))
    changes = []
    for index, metric in enumerate(METRICS):
        values = [metric.factor * metric.read(point).value for point in points]
        visible = [i == index for i, group in enumerate(groups) for _ in group]
        changes.append((visible, value_axis(metric.title, values, log_floor(values) if metric.log else None)))
    figure.update_layout(
        xaxis=axis(f"{_unit(points)[1]} on disk", range=_span(points), tickformat="~g"),
        yaxis=axis("", exponentformat="power"),
        legend={"orientation": "h", "y": -0.18, "yanchor": "top"},
        updatemenus=menu([metric.title for metric in METRICS], changes),
    )
    figure.update_layout(nested(changes[0][1]))
    return figure


def _unit(points: Sequence[Point]) -> tuple[float, str]:
    """Choose the unit of the bytes axis (decimal, as disks count), from the largest point."""
    largest = max(point.bytes for point in points)
    return next(
        ((size, name) for size, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if largest >= 2 * size), (1, "bytes")
    )


def _span(points: Sequence[Point]) -> list[float]:
    """Return the range of the bytes axis, with a margin."""
    sizes = [point.bytes / _unit(points)[0] for point in points]
    low, high = min(sizes), max(sizes)
    margin = 0.04 * (high - low) or 0.05 * high
    return [low - margin, high + margin]


def _method_line(mine: Sequence[Point], name: str, style: Style, drawing: Drawing) -> go.Scatter:
    """Draw one method, its points in order of size."""
    metric, floor = drawing.metric, drawing.floor
    means = [metric.read(point) for point in mine]
    shown = clipped([metric.factor * mean.value for mean in means], floor)
    errors = [metric.factor * mean.stderr for mean in means]
    below = [e if floor is None else max(min(e, y - floor), 0.0) for y, e in zip(shown, errors, strict=True)]
    return go.Scatter(
        x=[point.bytes / drawing.unit for point in mine],
        y=shown,
        mode="markers" if style.dash == "none" else "lines+markers",
        name=plot_text(name),
        legendgroup=name,
        meta={"label": name},
        visible=drawing.visible,
        showlegend=True,
        line=None if style.dash == "none" else {"color": style.color, "dash": style.dash, "width": 2},
        marker={"size": 8, "symbol": style.symbol, "color": style.color},
        error_y={"type": "data", "array": errors, "arrayminus": below, "thickness": 1, "width": 3},
        text=[_point_text(point) for point in mine],
        hovertemplate="%{text}<extra></extra>",
    )


def _point_text(point: Point) -> str:
    """Say everything about a point, for hovering."""
    accuracy = measured(100 * point.accuracy.value, 100 * point.accuracy.stderr, 2)
    kl = f"{quantity(point.kl.value)} ± {quantity(point.kl.stderr)}"
    lines = (
        f"<b>{plot_text(point.method)}</b>",
        plot_text(point.label),
        f"{point.average_bits:.3f} average bits, {point.bytes:,} bytes",
        f"accuracy {accuracy} %",
        f"KL {kl} nats",
    )
    return "<br>".join(lines)


def _float_line(points: Sequence[Point], float_point: Point, metric: Metric, visible: bool) -> go.Scatter:
    """Draw the float model across the plot."""
    value = metric.factor * metric.read(float_point).value
    label = f"float ({float_point.bytes:,} bytes)"
    return go.Scatter(
        x=_span(points),
        y=[value, value],
        mode="lines",
        name=plot_text(label),
        legendgroup="float",
        meta={"label": label},
        visible=visible,
        showlegend=True,
        line={"color": "#808080", "dash": "dot", "width": 2},
        text=[_point_text(float_point)] * 2,
        hovertemplate="%{text}<extra></extra>",
    )


_BELOW_AN_AXIS = 62  # pixels that tick labels and a title take


def cost(profile: Profile) -> go.Figure:
    """Draw what each predictor cost: forward-equivalents, and seconds where they were recorded."""
    names = [plot_text(table.predictor) for table in profile.tables]
    costs = [table.cost for table in profile.tables]
    rows = [("forward-equivalents", costs, [quantity(value) for value in costs])]
    if any(profile.seconds):
        rows.append(("seconds", list(profile.seconds), [duration(value) for value in profile.seconds]))
    height = len(rows) * (86 + 30 * len(names))
    apart = _BELOW_AN_AXIS / (height - 70) if len(rows) > 1 else 0.0  # 70: the margins and what is below the last axis
    figure = make_subplots(rows=len(rows), cols=1, vertical_spacing=apart)
    for row, (title, values, texts) in enumerate(rows, start=1):
        bars = go.Bar(
            x=values,
            y=names,
            orientation="h",
            marker={"color": OKABE_ITO[0]},
            text=texts,
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{y}: %{text}<extra></extra>",
            showlegend=False,
        )
        figure.add_trace(bars, row=row, col=1)
        figure.update_xaxes(axis(title, range=[0, 1.25 * max(values) or 1], fixedrange=True), row=row, col=1)
    figure.update_yaxes(axis("", autorange="reversed", showgrid=False, fixedrange=True))
    figure.update_layout(canvas(height))
    return figure
