"""Where is the model sensitive, and where did each plan put its bits? Layers down, choices across."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from geoquant.errors import PlanError
from geoquant.geometry import Estimate, ModelGeometry, SiteGeometry
from geoquant.plan import Plan
from geoquant.report.axes import axis, by_width, canvas, clipped, log_floor, menu
from geoquant.report.labels import plan_labels, plot_text, quantity, short_names, unit_text
from geoquant.report.palette import SCALE, SYMBOLS
from geoquant.sensitivity import DamageTable, Profile

NAME_LIMIT, NARROW_LIMIT = 34, 15
WIDEST_CODE = 8  # wider codes, and float, share the last shade


def row_pixels(rows: int) -> int:
    """Return the height of a row: tall for a few layers, still readable for hundreds.

    >>> row_pixels(2), row_pixels(20), row_pixels(200)
    (60, 24, 17)
    """
    return max(24, 120 // max(rows, 1)) if rows <= 60 else 17


def layer_axis(names: Sequence[str]) -> dict[str, Any]:
    """Describe an axis of layers, the first one on top; long names lose their middle."""
    size = 12 if len(names) <= 60 else 11
    tickfont = {"size": size}
    return axis(
        "",
        tickmode="array",
        tickvals=list(range(len(names))),
        ticktext=fitted(names, NAME_LIMIT),
        tickfont=tickfont,
        range=[len(names) - 0.5, -0.5],
        showgrid=False,
        fixedrange=True,
    )


def fitted(names: Sequence[str], limit: int) -> list[str]:
    """Return names of layers, cut to `limit` characters, as plotly shows them letter by letter."""
    return [plot_text(name) for name in short_names(names, limit)]


def check_plans(profile: Profile, plans: Sequence[Plan]) -> None:
    """Raise `PlanError` unless every plan is for the profile's layers."""
    for plan in plans:
        if plan.inventory.names != profile.inventory.names:
            other = sorted(set(plan.inventory.names) ^ set(profile.inventory.names))[:3]
            how = f"only one of them has {other}" if other else "the order of their layers differs"
            raise PlanError(f"a plan belongs to another model than the profile: {how}; report each on its own page")


def grid_heatmap(profile: Profile, plans: Sequence[Plan] = ()) -> go.Figure:
    """Draw predicted damage, layers × grids on a logarithmic colour scale, with the choice of each plan marked.

    Every predictor of the profile can be selected. Damages that are not positive take the lowest shade; hovering
    shows their value.

    Raises:
        PlanError: a plan is for another model.
    """
    check_plans(profile, plans)
    sites = profile.tables[0].sites
    order = by_width(profile.tables[0].grids)
    columns = [profile.tables[0].grids[column] for column in order]
    maps = [_damage_map(table, order, index == 0) for index, table in enumerate(profile.tables)]
    marks = _marks(sites, columns, plans, lambda plan: dict(zip(plan.inventory.names, plan.names, strict=True)))
    titles = [plot_text(f"{table.predictor} ({unit_text(table.unit)})") for table in profile.tables]
    changes = [
        ([i == j for j in range(len(maps))] + [True] * len(marks), {"title.text": title})
        for i, title in enumerate(titles)
    ]
    figure = lay_out_map([*maps, *marks], sites, columns, top=92)
    title = {"text": titles[0], "font": {"size": 13}, "x": 0.5, "xref": "paper", "xanchor": "center"}
    figure.update_layout(
        title={**title, "y": 1, "yanchor": "top"},
        legend={"orientation": "h", "y": 0, "yanchor": "top"},
        updatemenus=menu([table.predictor for table in profile.tables], changes),
    )
    figure.update_layout({"updatemenus[0].xanchor": "right"} if len(maps) > 1 else {})  # beside the colour bar
    # The colour bar hangs below the title, a fixed number of pixels from the top.
    figure.update_traces(colorbar_y=1 - 22 / figure.layout.height, selector={"type": "heatmap"})
    return figure


def lay_out_map(
    traces: Sequence[Any], names: Sequence[str], columns: Sequence[str], top: int, title: str = ""
) -> go.Figure:
    """Lay out layers down and columns across, `top` pixels below the upper edge."""
    figure = go.Figure(traces, canvas(len(names) * row_pixels(len(names)) + top + 36))
    figure.update_layout(
        margin={"t": top, "b": 24},
        xaxis=axis(
            title,
            side="top",
            tickmode="array",
            tickvals=list(range(len(columns))),
            ticktext=list(columns),
            showgrid=False,
            fixedrange=True,
            range=[-0.5, len(columns) - 0.5],
        ),
        yaxis=layer_axis(names),
        meta={"narrow": fitted(names, NARROW_LIMIT)},
    )
    return figure


def _damage_map(table: DamageTable, order: Sequence[int], visible: bool) -> go.Heatmap:
    """Colour by the logarithm; hover shows the damage itself."""
    floor = log_floor(value for row in table.damage for value in row)
    unit = unit_text(table.unit)
    shown = [[math.log10(value) if floor else value for value in clipped(row, floor)] for row in table.damage]
    hover = [
        [f"{plot_text(site)}<br>{table.grids[j]}: {quantity(row[j])} ± {quantity(error[j])}<br>{unit}" for j in order]
        for site, row, error in zip(table.sites, table.damage, table.stderr, strict=True)
    ]
    return go.Heatmap(
        z=[[row[j] for j in order] for row in shown],
        text=hover,
        hovertemplate="%{text}<extra></extra>",
        colorscale=SCALE,
        reversescale=True,
        visible=visible,
        xgap=1,
        ygap=1,
        name=plot_text(table.predictor),
        colorbar=color_bar(shown if floor else None),
        showlegend=False,
    )


def color_bar(logarithms: Sequence[Sequence[float]] | None) -> dict[str, Any]:
    """Describe a slim bar above the map; ticks are powers of ten, or 1-2-5 within less than two decades."""
    bar: dict[str, Any] = {
        "orientation": "h",
        "thickness": 10,
        "len": 1,
        "x": 0.5,
        "xpad": 0,
        "yref": "container",
        "yanchor": "top",
        "ypad": 0,
        "outlinewidth": 0,
    }
    if logarithms is not None:
        low, high = min(map(min, logarithms)), max(map(max, logarithms))
        powers = range(math.floor(low), math.ceil(high) + 1, max(1, math.ceil((high - low) / 6)))
        if high - low >= 2:
            ticks = [(float(power), f"10<sup>{power}</sup>") for power in powers]
        else:
            ticks = [(power + math.log10(m), f"{m * 10.0**power:g}") for power in powers for m in (1, 2, 5)]
        ticks = [(value, text) for value, text in ticks if low <= value <= high]
        bar |= {"tickmode": "array", "tickvals": [v for v, _ in ticks], "ticktext": [text for _, text in ticks]}
    return bar


def _marks(
    sites: Sequence[str], columns: Sequence[str], plans: Sequence[Plan], column_of: Callable[[Plan], Mapping[str, str]]
) -> list[go.Scatter]:
    """Mark the cell that each plan chose; plans sit side by side in a cell so that none hides another."""
    traces = []
    size = max(5, min(10, 24 // max(len(plans), 1)))
    for index, (plan, label) in enumerate(zip(plans, plan_labels(plans), strict=True)):
        shift = 0.8 * ((index + 0.5) / len(plans) - 0.5)
        chosen = column_of(plan)
        cells = [
            (columns.index(chosen[site]) + shift, row) for row, site in enumerate(sites) if chosen[site] in columns
        ]
        traces.append(
            go.Scatter(
                x=[x for x, _ in cells],
                y=[y for _, y in cells],
                mode="markers",
                name=plot_text(label),
                meta={"label": label},
                marker={
                    "symbol": SYMBOLS[index % len(SYMBOLS)],
                    "size": size,
                    "color": "#ffffff",
                    "line": {"color": "#000000", "width": 1.5},
                },
                hoverinfo="skip",
                showlegend=True,
            )
        )
    return traces


@dataclass(frozen=True)
class Measure:
    """What the curvature map can be coloured by."""

    title: str
    read: Callable[[SiteGeometry], Estimate | None]


MEASURES = (
    Measure("Gauss-Newton trace per weight", lambda site: site.trace_per_weight),
    Measure("Gauss-Newton trace", lambda site: site.gauss_newton_trace),
    Measure("Hessian trace", lambda site: site.hessian_trace),
    Measure("spectral norm", lambda site: site.spectral_norm),
    Measure("condition number", lambda site: site.condition_number),
)


def measures_of(geometry: ModelGeometry) -> tuple[Measure, ...]:
    """Return the measures that at least one site has."""
    return tuple(each for each in MEASURES if any(each.read(site) is not None for site in geometry.sites))


def curvature_map(geometry: ModelGeometry, plans: Sequence[Plan] = ()) -> go.Figure:
    """Colour the layers by a measure of their geometry, on a logarithmic scale, and mark the bits of each plan on top.

    Every measure that was taken can be selected. Its value stands in the first column.

    Raises:
        PlanError: nothing was measured, or a plan has no bits for one of the layers.
    """
    sites, measures = [site.site for site in geometry.sites], measures_of(geometry)
    if not measures or any(set(sites) - set(plan.inventory.names) for plan in plans):
        raise PlanError("a curvature map needs a measured geometry, and plans for the same model")
    columns = ["value", *_bit_columns(plans)]
    maps = [_measure_map(geometry, measure, columns, index == 0) for index, measure in enumerate(measures)]
    marks = _marks(
        sites,
        columns,
        plans,
        lambda plan: {n: f"{g.bits:g}" for n, g in zip(plan.inventory.names, plan.grids, strict=True)},
    )
    changes: list[tuple[list[bool], dict[str, Any]]] = [
        ([i == j for j in range(len(maps))] + [True] * len(marks), {"title.text": measure.title})
        for i, measure in enumerate(measures)
    ]
    figure = lay_out_map([*maps, *marks], sites, columns, top=112, title="bits per weight (codes)" if plans else "")
    title = {"text": measures[0].title, "font": {"size": 13}, "x": 0.5, "xref": "paper", "xanchor": "center"}
    figure.update_layout(
        title={**title, "y": 1, "yanchor": "top"},
        legend={"orientation": "h", "y": 0, "yanchor": "top"},
        updatemenus=menu([measure.title for measure in measures], changes),
    )
    figure.update_traces(colorbar_y=1 - 22 / figure.layout.height, selector={"type": "heatmap"})
    return figure


def _bit_columns(plans: Sequence[Plan]) -> list[str]:
    """Return every width that a plan uses, and the whole ones between them up to `WIDEST_CODE`."""
    used = {float(grid.bits) for plan in plans for grid in plan.grids}
    whole = range(math.ceil(min(used)), min(math.floor(max(used)), WIDEST_CODE) + 1) if used else ()
    return [f"{bits:g}" for bits in sorted(used | {float(bits) for bits in whole})]


def _measure_map(geometry: ModelGeometry, measure: Measure, columns: Sequence[str], visible: bool) -> go.Heatmap:
    """Colour whole rows; what is infinite takes the darkest shade, what was not measured none."""
    found = [measure.read(site) for site in geometry.sites]
    finite = [each.value for each in found if each is not None and math.isfinite(each.value)]
    floor, top = log_floor(finite), max(finite, default=1.0)
    shown = [None if each is None else min(max(each.value, floor or each.value), top) for each in found]
    logs = [value if value is None or floor is None else math.log10(value) for value in shown]
    known = [value for value in logs if value is not None]
    hover = [
        f"{plot_text(site.site)}<br>{measure.title}: {each}" for site, each in zip(geometry.sites, found, strict=True)
    ]
    values = ["–" if each is None else quantity(each.value) for each in found]
    return go.Heatmap(
        z=[[value] * len(columns) for value in logs],
        text=[[value, *[""] * (len(columns) - 1)] for value in values],
        texttemplate="%{text}",
        textfont={"size": 12 if len(found) <= 60 else 11},
        customdata=[[text] * len(columns) for text in hover],
        hovertemplate="%{customdata}<extra></extra>",
        hoverongaps=False,
        colorscale=SCALE,
        reversescale=True,
        visible=visible,
        xgap=1,
        ygap=1,
        name=measure.title,
        colorbar=color_bar([known] if floor and known else None),
        showlegend=False,
    )


def bits_heatmap(plans: Sequence[Plan]) -> go.Figure:
    """Draw the width of every layer in every plan: layers × plans, each cell with its bits.

    Raises:
        PlanError: there is no plan, or the plans are for different models.
    """
    if not plans:
        raise PlanError("a heatmap of bits needs at least one plan")
    if len({plan.inventory.names for plan in plans}) > 1:
        raise PlanError("a heatmap of bits needs plans of one model; these have different layers")
    names = plans[0].inventory.names
    labels = plan_labels(plans)
    widths = [[plan.grids[row].bits for plan in plans] for row in range(len(names))]
    cells = go.Heatmap(
        z=[[min(width, WIDEST_CODE) for width in row] for row in widths],
        zmin=1,
        zmax=WIDEST_CODE,
        text=[[f"{width:g}" for width in row] for row in widths],
        customdata=_bits_hover(plans, names, labels),
        texttemplate="%{text}",
        textfont={"size": 12 if len(names) <= 60 else 11},
        hovertemplate="%{customdata}<extra></extra>",
        colorscale=SCALE,
        reversescale=True,
        showscale=False,
        xgap=1,
        ygap=1,
    )
    title, ticks = _plan_ticks(labels)
    return lay_out_map([cells], names, ticks, top=66, title=title)


def _bits_hover(plans: Sequence[Plan], names: Sequence[str], labels: Sequence[str]) -> list[list[str]]:
    """Say for every cell which grid it is and what it stores."""
    bits = [plan.bits for plan in plans]
    return [
        [
            f"{plot_text(name)}<br>{plot_text(label)}: {plan.names[row]}<br>{stored[name]:.2f} stored bits per weight"
            for plan, label, stored in zip(plans, labels, bits, strict=True)
        ]
        for row, name in enumerate(names)
    ]


def _plan_ticks(labels: Sequence[str]) -> tuple[str, list[str]]:
    """Split labels such as "3 average bits" into a common title and short ticks; else break them into lines."""
    parts = [label.partition(" ") for label in labels]
    endings = {rest for _, _, rest in parts}
    if len(endings) == 1:
        return plot_text(endings.pop()), [plot_text(number) for number, _, _ in parts]
    return "", [plot_text(label).replace(" ", "<br>") for label in labels]
