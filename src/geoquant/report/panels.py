"""Which figures does a page show, and what does each say to a reader who cannot see it?

A panel is a figure with a heading, a text alternative computed from the same numbers, the controls that the
page offers, and its numbers as tables.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from geoquant.plan import Plan
from geoquant.report import tables
from geoquant.report.axes import by_width
from geoquant.report.figures import FEW_LAYERS, cost, damage_curves, pareto
from geoquant.report.heatmaps import bits_heatmap, grid_heatmap
from geoquant.report.labels import percent, plan_labels, quantity, unit_text
from geoquant.report.pages import File
from geoquant.report.sweep import Point
from geoquant.sensitivity import Profile


@dataclass(frozen=True, eq=False)
class Panel:
    """A figure as the page shows it.

    Attributes:
        key: its id on the page.
        title, caption: heading, and a sentence on how to read it.
        alternative: what the figure shows, in words.
        figure: what plotly draws.
        choose: what the figure's menu chooses between, as a word for its label.
        layers: names to offer for highlighting; none offers nothing.
        tables: the numbers.
        files: the figure and its numbers, beside the page.
    """

    key: str
    title: str
    caption: str
    alternative: str
    figure: go.Figure
    tables: tuple[tables.Table, ...]
    choose: str = "Predictor"
    layers: tuple[str, ...] = ()
    files: tuple[File, ...] = ()

    @property
    def choices(self) -> tuple[str, ...]:
        """Return the labels of the figure's menu."""
        menus = self.figure.layout.updatemenus
        return tuple(button.label for button in menus[0].buttons) if menus else ()

    @property
    def json(self) -> str:
        """Return the figure as JSON that is safe inside a script element, its menu beside the layout."""
        document: dict[str, Any] = json.loads(self.figure.to_json())
        document["layout"].pop("updatemenus", None)
        menus = self.figure.layout.updatemenus
        document["choices"] = [list(button.args) for button in menus[0].buttons] if menus else []
        text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
        return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def heatmap_panel(profile: Profile, plans: Sequence[Plan]) -> Panel:
    """Show damage per layer and grid."""
    table = profile.tables[0]
    narrowest = by_width(table.grids)[0]
    ranked = sorted(range(len(table.sites)), key=lambda row: -table.damage[row][narrowest])
    top = ", ".join(f"{table.sites[row]} ({quantity(table.damage[row][narrowest])})" for row in ranked[:3])
    marks = " Marks show the grid that each plan chose." if plans else ""
    return Panel(
        "damage-map",
        "Where the model is sensitive",
        "Predicted damage when one layer alone moves to a grid; darker is worse, each shade is a factor." + marks,
        f"Heatmap of {len(table.sites)} layers by {len(table.grids)} grids, in {unit_text(table.unit)}. "
        f"Largest damages at {table.grids[narrowest]}: {top}.",
        grid_heatmap(profile, plans),
        (tables.damage_table(table),),
    )


def bits_panel(plans: Sequence[Plan]) -> Panel:
    """Show bits per layer and plan."""
    ranges = []
    for label, plan in zip(plan_labels(plans), plans, strict=True):
        widths = [grid.bits for grid in plan.grids]
        ranges.append(f"{label}: {min(widths):g} to {max(widths):g} bits")
    return Panel(
        "bits-map",
        "Where the bits went",
        "Code bits of every layer in every plan; darker is wider.",
        f"Heatmap of {len(plans[0].names)} layers by {len(plans)} plans. {'; '.join(ranges)}.",
        bits_heatmap(plans),
        (tables.bits_table(plans),),
    )


def curves_panel(profile: Profile) -> Panel:
    """Show damage against bits."""
    table = profile.tables[0]
    order = by_width(table.grids)
    first, last = table.grids[order[0]], table.grids[order[-1]]
    sums = [sum(row[j] for row in table.damage) for j in (order[0], order[-1])]
    many = len(table.sites) > FEW_LAYERS
    color = " Colour runs from the first layer (blue) over pink to the last (orange)." if many else ""
    return Panel(
        "damage-curves",
        "Damage against bits",
        f"One line per layer; bars are one standard error; open circles are zero or below.{color}",
        f"Lines of {len(table.sites)} layers. Summed over layers, {table.predictor} goes from "
        f"{quantity(sums[0])} at {first} to {quantity(sums[1])} at {last} ({unit_text(table.unit)}).",
        damage_curves(profile),
        (*(tables.damage_table(each) for each in profile.tables), *_inputs(profile)),
        layers=table.sites,
    )


def _inputs(profile: Profile) -> tuple[tables.Table, ...]:
    return () if profile.activations is None else (tables.input_damage_table(profile.activations.damages),)


def pareto_panel(points: Sequence[Point], float_point: Point | None) -> Panel:
    """Show accuracy against bytes."""
    best = max(points, key=lambda point: (point.accuracy.value, -point.bytes))
    least = min(points, key=lambda point: point.bytes)
    floats = "" if float_point is None else f" The float model reaches {percent(float_point.accuracy.value)}."
    return Panel(
        "pareto",
        "Accuracy against bytes",
        "Better is up and to the left; for KL and cross-entropy, down and to the left. "
        "Uniform grids are grey and dashed; bars are one standard error.",
        f"Lines of {len({point.method for point in points})} methods over {len(set(points))} plans. Most accurate: "
        f"{best.method}, {best.label}, {percent(best.accuracy.value)} in {best.bytes:,} bytes. Smallest: "
        f"{least.method}, {least.label}, {percent(least.accuracy.value)} in {least.bytes:,} bytes.{floats}",
        pareto(points, float_point),
        (tables.points_table(points, float_point),),
        choose="Measure",
    )


def cost_panel(profile: Profile) -> Panel:
    """Show what measuring cost."""
    parts = [f"{table.predictor} {quantity(table.cost)}" for table in profile.tables]
    return Panel(
        "cost-plot",
        "What measuring cost",
        "A forward-equivalent is one float pass over the whole calibration set.",
        f"Bars of forward-equivalents: {', '.join(parts)}.",
        cost(profile),
        (tables.cost_table(profile),),
    )
