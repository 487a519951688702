"""How is a study's figure drawn so that one can point at it? Plain series become plotly figures.

Colours, dashes and markers are those of all other figures (`palette`): grey dashes mean uniform. Spreads are standard
deviations. Values that a logarithmic axis cannot show sit on its lower edge as open markers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from geoquant.findings import Figure, Series
from geoquant.report.axes import axis, canvas, clipped, log_floor, value_axis
from geoquant.report.figures import nested
from geoquant.report.heatmaps import color_bar, lay_out_map
from geoquant.report.labels import number, plot_text
from geoquant.report.palette import SCALE, Style, styles

HEIGHT = 460
MAP_TOP = 112  # pixels for the colour bar and the titles
FEW_COLUMNS = 12  # up to which a map shows its values
FEW_POINTS = 40  # up to which a line shows its markers


def plot(figure: Figure) -> go.Figure:
    """Draw any kind of figure that a study may declare.

    >>> figure = Figure("f", "lines", "t", "bits", "loss", (Series("a", (2, 3), (1.0, 0.5)),), "one line that falls")
    >>> plot(figure).data[0].y
    (1.0, 0.5)
    """
    return _map(figure) if figure.kind == "heatmap" else _axes(figure)


def categories(figure: Figure) -> tuple[str, ...] | None:
    """Return the places on the x axis in order of appearance, or None where x is a number throughout."""
    found = [x for series in figure.series for x in series.x]
    return tuple(dict.fromkeys(map(str, found))) if any(isinstance(x, str) for x in found) else None


def known(series: Sequence[Series]) -> list[float]:
    """Return all values that are there."""
    return [y for each in series for y in each.y if y is not None]


def _axes(figure: Figure) -> go.Figure:
    """Draw lines, points or bars."""
    values, places = known(figure.series), categories(figure)
    floor = log_floor(values) if figure.log_y else None
    looks = styles([series.name for series in figure.series])
    draw = _bars if figure.kind in ("bars", "stacked") else _points
    several = len(figure.series) > 1
    traces = [draw(figure, series, looks[series.name], floor) for series in figure.series]
    result = go.Figure([trace.update(showlegend=several) for trace in traces], canvas(HEIGHT))
    across: dict[str, Any] = {"type": "log"} if figure.log_x else {}
    if places is not None:
        across = {"type": "category", "categoryorder": "array", "categoryarray": [plot_text(one) for one in places]}
    result.update_layout(
        xaxis=axis(plot_text(figure.x), **across),
        yaxis=axis("", exponentformat="power"),
        barmode="stack" if figure.kind == "stacked" else "group",
        bargap=0.3,
    )
    result.update_layout(nested(value_axis(plot_text(figure.y), values, floor if values else None)))
    return result


def _points(figure: Figure, series: Series, look: Style, floor: float | None) -> go.Scatter:
    """Draw one line, or one group of points."""
    shown = _lifted(series.y, floor)
    hidden = [floor is not None and y is not None and y < floor for y in series.y]
    lines = figure.kind == "lines" and look.dash != "none"
    markers = not lines or len(series.x) <= FEW_POINTS
    symbols = [f"{look.symbol}-open" if flag else look.symbol for flag in hidden]
    return go.Scatter(
        x=_places(figure, series),
        y=shown,
        mode="+".join(["lines"] * lines + ["markers"] * markers),
        line={"color": look.color, "dash": look.dash, "width": 2} if lines else None,
        marker={"size": 8, "symbol": symbols if any(hidden) else look.symbol, "color": look.color},
        error_y=_bars_of_spread(series, shown, floor),
        **_named(figure, series),
    )


def _bars(figure: Figure, series: Series, look: Style, floor: float | None) -> go.Bar:
    return go.Bar(
        x=_places(figure, series),
        y=_lifted(series.y, floor),
        marker={"color": look.color},
        error_y=_bars_of_spread(series, series.y, floor),
        **_named(figure, series),
    )


def _named(figure: Figure, series: Series) -> dict[str, Any]:
    """Return what every trace has: its name, and what hovering says."""
    return {
        "name": plot_text(series.name),
        "meta": {"label": series.name},
        "text": [hover(figure, series, index) for index in range(len(series.x))],
        "textposition": "none" if figure.kind in ("bars", "stacked") else None,
        "hovertemplate": "%{text}<extra></extra>",
    }


def hover(figure: Figure, series: Series, index: int) -> str:
    """Say everything about a point: its series, place, value with spread, and note."""
    spread = series.spread[index] if series.spread else None
    lines = [
        f"<b>{plot_text(series.name)}</b>",
        f"{plot_text(figure.x)}: {plot_text(number(series.x[index]))}",
        f"{plot_text(figure.colour or figure.y)}: {number(series.y[index], spread)}",
    ]
    return "<br>".join(lines + [plot_text(note) for note in series.notes[index : index + 1] if note])


def _places(figure: Figure, series: Series) -> list[Any]:
    return list(series.x) if categories(figure) is None else [plot_text(str(x)) for x in series.x]


def _lifted(values: Sequence[float | None], floor: float | None) -> list[float | None]:
    return [None if y is None else clipped([y], floor)[0] for y in values]


def _bars_of_spread(series: Series, shown: Sequence[float | None], floor: float | None) -> dict[str, Any] | None:
    """Draw one standard deviation to each side, but never through the floor."""
    if not any(series.spread):
        return None
    above = [spread or 0.0 for spread in series.spread]
    below = [
        spread if floor is None or y is None else max(min(spread, y - floor), 0.0)
        for y, spread in zip(shown, above, strict=True)
    ]
    return {"type": "data", "array": above, "arrayminus": below, "thickness": 1, "width": 3}


def _map(figure: Figure) -> go.Figure:
    """Colour series down and places across."""
    numbers = sorted({x for each in figure.series for x in each.x if not isinstance(x, str)})
    places: tuple[float | str, ...] = categories(figure) or tuple(numbers)
    z: list[list[float | None]] = []
    text: list[list[str]] = []
    for series in figure.series:
        at = {key: index for index, key in enumerate(_keys(series, places))}
        z.append([series.y[at[place]] if place in at else None for place in places])
        text.append([hover(figure, series, at[place]) if place in at else "" for place in places])
    cells = go.Heatmap(
        z=z,
        customdata=text,
        hovertemplate="%{customdata}<extra></extra>",
        hoverongaps=False,
        colorscale=SCALE,
        reversescale=True,
        xgap=1,
        ygap=1,
        colorbar=color_bar(None),
        showlegend=False,
    )
    if len(places) <= FEW_COLUMNS:
        cells.update(text=[["" if y is None else number(y) for y in row] for row in z], texttemplate="%{text}")
    names = [series.name for series in figure.series]
    result = lay_out_map([cells], names, [plot_text(number(p)) for p in places], MAP_TOP, plot_text(figure.x))
    title = {"text": plot_text(figure.colour), "font": {"size": 13}, "x": 0.5, "xref": "paper", "xanchor": "center"}
    result.update_layout(title={**title, "y": 1, "yanchor": "top"})
    result.update_traces(colorbar_y=1 - 22 / result.layout.height)
    return result


def _keys(series: Series, places: Sequence[float | str]) -> list[float | str]:
    return [str(x) for x in series.x] if any(isinstance(place, str) for place in places) else list(series.x)
