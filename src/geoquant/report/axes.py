"""What do all figures share: a transparent canvas, logarithmic axes that survive zeros, choices, grid columns.

Figures are complete plotly figures, with a drop-down menu where there is something to choose, so they work
in a notebook. The page takes the menu's buttons and offers them as a native control instead.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import plotly.graph_objects as go

from geoquant.grids import Grid

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
OTHER_GRIDS = "other grids"
GRIDLINE = "rgba(128, 128, 128, 0.25)"


def canvas(height: int, **layout: Any) -> go.Layout:
    """Return a layout with a transparent background and fonts of the system.

    Colours of text and grid are left to the reader's scheme, light or dark; see the page's script.
    """
    return go.Layout(
        template="none",
        height=height,
        margin={"l": 8, "r": 8, "t": 16, "b": 8},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": FONT, "size": 13},
        hoverlabel={"align": "left", "font": {"family": FONT, "size": 13}},
        **layout,
    )


def axis(title: str, **more: Any) -> dict[str, Any]:
    """Describe an axis with a title, fine grid lines and room for its labels."""
    base = {
        "title": {"text": title, "font": {"size": 13}},
        "gridcolor": GRIDLINE,
        "zeroline": False,
        "automargin": True,
        "ticks": "outside",
        "ticklen": 6,
        "tickcolor": "rgba(0,0,0,0)",
    }
    return {**base, **more}


def log_floor(values: Iterable[float]) -> float | None:
    """Return where to draw what a logarithmic axis cannot show: a third of the least positive value.

    None when nothing is positive.

    >>> log_floor([0.0, 0.3, 6.0])
    0.09999999999999999
    >>> log_floor([0.0]) is None
    True
    """
    positive = [value for value in values if value > 0 and math.isfinite(value)]
    return min(positive) / 3 if positive else None


def clipped(values: Sequence[float], floor: float | None) -> list[float]:
    """Lift values that a logarithmic axis cannot show to `floor`; leave all of them when it is None."""
    return [value if floor is None else max(value, floor) for value in values]


def value_axis(title: str, values: Sequence[float], floor: float | None) -> dict[str, Any]:
    """Describe a y axis in plotly's dotted form: logarithmic with a tick a decade where `floor` allows, else linear."""
    changes: dict[str, Any] = {"yaxis.title.text": title, "yaxis.type": "linear", "yaxis.dtick": None}
    changes["yaxis.tickfont.size"] = 13
    if floor is not None:
        wide = max(values) / max(min(values), floor) > 30
        # Plotly writes powers of ten a quarter larger than it was told.
        changes |= {"yaxis.type": "log"} | ({"yaxis.dtick": 1, "yaxis.tickfont.size": 10.5} if wide else {})
    return changes


def menu(labels: Sequence[str], changes: Sequence[tuple[Sequence[bool], dict[str, Any]]]) -> list[dict[str, Any]]:
    """Build a drop-down: for each label, which traces to show and what to change in the layout."""
    if len(labels) < 2:
        return []
    buttons = [
        {"label": label, "method": "update", "args": [{"visible": list(visible)}, layout]}
        for label, (visible, layout) in zip(labels, changes, strict=True)
    ]
    return [{"buttons": buttons, "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "active": 0}]


def by_width(grids: Sequence[str]) -> list[int]:
    """Return the order of `grids` by code bits, keeping ties as they come."""
    return sorted(range(len(grids)), key=lambda column: Grid.parse(grids[column]).bits)


def family(grid: str) -> str:
    """Name what a grid has in common with its other widths; grids that are alone share one name.

    >>> family("int3:affine"), family("ternary")
    ('int:affine', 'other grids')
    """
    match = re.fullmatch(r"int\d+(.*)", grid)
    return f"int{match[1]}" if match else OTHER_GRIDS
