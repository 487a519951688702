"""The same figures of a study as pictures for papers, by matplotlib: same colours, markers and floors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from geoquant.findings import Figure, Series
from geoquant.report.axes import clipped, log_floor
from geoquant.report.labels import number, short_names
from geoquant.report.palette import MATPLOTLIB_DASHES, MATPLOTLIB_MARKERS, Style, styles
from geoquant.report.png import LABEL, name_places, plain_axes, save_picture
from geoquant.report.study_figures import FEW_COLUMNS, FEW_POINTS, categories, known

COLUMNS = 3  # of a legend
SHORT_SPAN = 100.0  # a logarithmic axis that spans less also names 2 and 5


def figure_png(figure: Figure, path: Path | str) -> Path:
    """Write a study's figure as a PNG, atomically; return its path.

    Raises:
        OutputError: the file cannot be written.
    """
    return save_picture(draw(figure), path)


def draw(figure: Figure) -> Picture:
    """Return the picture before it is written."""
    return _map(figure) if figure.kind == "heatmap" else _axes(figure)


def _axes(figure: Figure) -> Picture:
    picture = Picture(figsize=(7.2, 4.4), layout="constrained")
    axes = picture.add_subplot()
    places = categories(figure)
    floor = log_floor(known(figure.series)) if figure.log_y else None
    looks = styles([series.name for series in figure.series])
    bottoms = np.zeros(len(places or _numbers(figure)))
    for index, series in enumerate(figure.series):
        at = _positions(figure, series)
        if figure.kind in ("bars", "stacked"):
            bottoms = _bars(axes, figure, index, at, looks[series.name], bottoms)
        else:
            _points(axes, figure, series, at, looks[series.name], floor)
    if places is not None or figure.kind in ("bars", "stacked"):
        name_places(axes, places or tuple(number(x) for x in _numbers(figure)))
    axes.set_xlabel(figure.x)
    axes.set_ylabel(figure.y)
    if figure.log_x and places is None and figure.kind in ("lines", "scatter"):
        axes.set_xscale("log")
        _plain_log(axes.xaxis)
    if floor is not None:
        axes.set_yscale("log")
        _plain_log(axes.yaxis)
    plain_axes(axes)
    if len(figure.series) > 1:
        picture.legend(
            loc="outside upper center", ncols=min(COLUMNS, len(figure.series)), frameon=False, fontsize="small"
        )
    return picture


def _plain_log(axis: Axis) -> None:
    """Write numbers as people do: 2 and 50, not 2×10⁰ and 5×10¹."""
    low, high = sorted(axis.get_view_interval())
    plain = FuncFormatter(lambda value, _: number(float(value)))
    axis.set_major_formatter(plain)
    axis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
    axis.set_minor_formatter(plain if high < SHORT_SPAN * low else NullFormatter())


def _numbers(figure: Figure) -> tuple[float, ...]:
    """Return the distinct places of a numerical x axis, sorted."""
    return tuple(sorted({float(x) for series in figure.series for x in series.x}))


def _positions(figure: Figure, series: Series) -> list[float]:
    """Return where the values of one series lie: bars and categories stand side by side."""
    places = categories(figure)
    if places is not None:
        return [float(places.index(str(x))) for x in series.x]
    if figure.kind in ("bars", "stacked"):
        order = _numbers(figure)
        return [float(order.index(float(x))) for x in series.x]
    return [float(x) for x in series.x]


def _points(axes: Axes, figure: Figure, series: Series, at: list[float], look: Style, floor: float | None) -> None:
    shown = [np.nan if y is None else clipped([y], floor)[0] for y in series.y]
    lines = figure.kind == "lines" and look.dash != "none"
    style: dict[str, Any] = {
        "color": look.color,
        "linestyle": MATPLOTLIB_DASHES[look.dash] if lines else "none",
        "marker": MATPLOTLIB_MARKERS[look.symbol] if not lines or len(at) <= FEW_POINTS else None,
        "markersize": 4.5,
        "linewidth": 1.5,
        "label": series.name,
    }
    if not any(series.spread):
        axes.plot(at, shown, **style)
        return
    above = [spread or 0.0 for spread in series.spread]
    below = [s if floor is None else np.nanmax([min(s, y - floor), 0.0]) for s, y in zip(above, shown, strict=True)]
    axes.errorbar(at, shown, yerr=[below, above], elinewidth=0.8, capsize=2, **style)


def _bars(axes: Axes, figure: Figure, index: int, at: list[float], look: Style, bottoms: Any) -> Any:
    """Draw the bars of one series; return the heights that the next ones of a stack start from."""
    series, stacked = figure.series[index], figure.kind == "stacked"
    heights = np.array([0.0 if y is None else y for y in series.y])
    width = 0.7 if stacked else 0.7 / len(figure.series)
    places = np.array(at) + (0.0 if stacked else (index - (len(figure.series) - 1) / 2) * width)
    rows = np.array(at, dtype=int)
    axes.bar(
        places,
        heights,
        width,
        bottom=bottoms[rows] if stacked else None,
        yerr=[spread or 0.0 for spread in series.spread] if any(series.spread) else None,
        error_kw={"elinewidth": 0.8, "capsize": 2},
        color=look.color,
        label=series.name,
    )
    if stacked:
        np.add.at(bottoms, rows, heights)
    return bottoms


def _map(figure: Figure) -> Picture:
    places = categories(figure)
    columns = places if places is not None else tuple(number(x) for x in _numbers(figure))
    values = np.full((len(figure.series), len(columns)), np.nan)
    for row, series in enumerate(figure.series):
        at = [columns.index(str(x) if places is not None else number(float(x))) for x in series.x]
        values[row, at] = [np.nan if y is None else y for y in series.y]
    size = (2.4 + 0.6 * len(columns), 1.8 + 0.28 * len(values))
    picture = Picture(figsize=size, layout="constrained")
    axes = picture.add_subplot()
    if values.size:
        image = axes.imshow(values, cmap="cividis_r", aspect="auto")
        picture.colorbar(image, ax=axes, label=figure.colour)
    name_places(axes, columns)
    axes.set_yticks(range(len(values)), short_names([each.name for each in figure.series], LABEL), fontsize="small")
    axes.set_xlabel(figure.x)
    axes.set_ylabel(figure.y)
    if len(columns) <= FEW_COLUMNS:
        _write_values(axes, values)
    return picture


def _write_values(axes: Axes, values: Any) -> None:
    """Write each value into its cell, light on dark."""
    known_cells = np.argwhere(~np.isnan(values)).tolist()
    middle = (np.nanmin(values) + np.nanmax(values)) / 2 if known_cells else 0.0
    for row, column in known_cells:
        ink = "white" if values[row, column] > middle else "black"
        text = number(values[row, column])
        axes.text(column, row, text, ha="center", va="center", fontsize="x-small", color=ink)
