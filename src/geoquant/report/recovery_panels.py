"""What happened while the quantized model was trained: losses, which way the steps led, distances, oscillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from geoquant.recovery import Trace
from geoquant.report.axes import axis, canvas, menu
from geoquant.report.labels import percent, quantity
from geoquant.report.palette import OKABE_ITO
from geoquant.report.panels import Panel
from geoquant.report.tables import Table, number_cell


@dataclass(frozen=True)
class _View:
    """What the panel's menu offers: an axis, and the figures of a trace point on it with their words."""

    label: str
    axis: str
    lines: tuple[tuple[str, str], ...]


_VIEWS = (
    _View(
        "Loss",
        "loss",
        (("quantized_loss", "f(Q(w)), quantized"), ("latent_loss", "f(w), latent"), ("training_loss", "training step")),
    ),
    _View("Inwards", "cosine of descent and the way to the float weights", (("inward_share", "inwards"),)),
    _View(
        "Distance",
        "root mean square, in steps of the grid",
        (("quantized_distance", "Q(w) to float"), ("latent_distance", "w to float")),
    ),
    _View("Oscillation", "share of weights", (("oscillating", "oscillating"), ("frozen", "frozen"))),
)


def trace_plot(trace: Trace) -> go.Figure:
    """Draw the views of a trace over the steps, one at a time."""
    steps = [point.step for point in trace.points]
    figure, shown = go.Figure(layout=canvas(360)), []
    for index, view in enumerate(_VIEWS):
        for place, (name, words) in enumerate(view.lines):
            # Before the first step there is no training loss.
            kept = [point for point in trace.points if name != "training_loss" or point.step]
            figure.add_scatter(
                x=[point.step for point in kept],
                y=[getattr(point, name) for point in kept],
                mode="lines+markers",
                name=words,
                meta={"label": words},
                line={"color": OKABE_ITO[place], "width": 2, "dash": ("solid", "dash", "dot")[place]},
                hovertemplate=f"{words}, step %{{x}}: %{{y:.4g}}<extra></extra>",
                visible=index == 0,
                showlegend=True,
            )
            shown.append(index)
    changes: list[tuple[list[bool], dict[str, Any]]] = [
        ([each == index for each in shown], {"yaxis.title.text": view.axis}) for index, view in enumerate(_VIEWS)
    ]
    figure.update_layout(
        xaxis=axis("optimizer steps", range=[0, max(steps) * 1.02 or 1]),
        yaxis=axis(_VIEWS[0].axis, rangemode="tozero"),
        updatemenus=menu([view.label for view in _VIEWS], changes),
    )
    return figure


def trace_panel(trace: Trace) -> Panel:
    """Show a trace with at least one point."""
    first, last = trace.points[0], trace.points[-1]
    inward = sum(point.inward > 0 for point in trace.points)
    return Panel(
        "recovery-trace",
        "What training on the grids did",
        "f(Q(w)) is the loss of the quantized weights and f(w) that of the latent ones, on one batch that stays the "
        "same. Inwards is positive where a descent step from Q(w) leads towards the float weights.",
        f"{len(trace.points)} looks over {last.step} steps: f(Q(w)) from {quantity(first.quantized_loss)} to "
        f"{quantity(last.quantized_loss)}, f(w) from {quantity(first.latent_loss)} to {quantity(last.latent_loss)}; "
        f"inwards at {inward} of {len(trace.points)}; {percent(last.oscillating)} of the weights oscillate at the end.",
        trace_plot(trace),
        (trace_table(trace),),
        choose="Figure",
    )


def trace_table(trace: Trace) -> Table:
    """List every point of a trace."""
    named = [(name, words) for view in _VIEWS for name, words in view.lines]
    rows = []
    for point in trace.points:
        values = [float(getattr(point, name)) for name, _ in named]
        cells = [number_cell(value, quantity(value) if value >= 0 else f"−{quantity(-value)}") for value in values]
        rows.append((number_cell(point.step, str(point.step)), *cells))
    columns = ("step", *(words for _, words in named))
    return Table("The run, point by point", columns, (True,) * len(columns), tuple(rows))
