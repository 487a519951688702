"""The pictures that a README or a paper wants, as PNG by matplotlib.

They follow the same rules as the page: colour means evidence, grey dashes mean uniform, uncertain points
carry their standard error. No display is needed and no global state of matplotlib is touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from geoquant import storage
from geoquant.basin import Line, Plane
from geoquant.errors import PlanError
from geoquant.geometry import ModelGeometry, Spectrum
from geoquant.plan import Plan
from geoquant.report.axes import by_width, clipped, log_floor
from geoquant.report.basin_figures import (
    FURTHEST,
    RISE,
    STEPS,
    half_steps,
    interpolate,
    line_points,
    plane_levels,
)
from geoquant.report.geometry_figures import CANCELLED, TOTAL, spectrum_curve
from geoquant.report.heatmaps import MEASURES, WIDEST_CODE, check_plans
from geoquant.report.labels import plan_labels, short_names, shorten, unit_text
from geoquant.report.palette import MATPLOTLIB_DASHES, MATPLOTLIB_MARKERS, OKABE_ITO, SYMBOLS, series, styles
from geoquant.report.sweep import Point
from geoquant.report.waterfall import Waterfall
from geoquant.sensitivity import Profile

DPI = 200
LEAST_HEIGHT = 3.6  # inches, for the label of a colour bar
LABEL = 34  # characters of a tick label
ASKEW = 40  # characters of all labels along x together, from which on they stand askew


def pareto_png(points: Sequence[Point], path: Path | str, float_point: Point | None = None) -> Path:
    """Write accuracy against bytes as a PNG, atomically; return its path.

    Raises:
        PlanError: there is no point.
        OutputError: the file cannot be written.
    """
    if not points:
        raise PlanError("accuracy against bytes needs at least one evaluated plan")
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    lines = series(points)
    for name, style in styles(list(lines)).items():
        mine = lines[name]
        axes.errorbar(
            [point.bytes for point in mine],
            [100 * point.accuracy.value for point in mine],
            yerr=[100 * point.accuracy.stderr for point in mine],
            color=style.color,
            linestyle=MATPLOTLIB_DASHES[style.dash],
            marker=MATPLOTLIB_MARKERS[style.symbol],
            markersize=4.5,
            linewidth=1.5,
            elinewidth=0.8,
            capsize=2,
            label=name,
        )
    if float_point is not None:
        value = 100 * float_point.accuracy.value
        axes.axhline(value, color="#808080", linestyle=":", label=f"float, {float_point.bytes:,} bytes")
    axes.set_xlabel("bytes on disk")
    axes.set_ylabel("accuracy (%)")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    plain_axes(axes)
    axes.legend(frameon=False, fontsize="small", loc="lower right")
    return save_picture(figure, path)


def heatmap_png(
    profile: Profile, path: Path | str, plans: Sequence[Plan] = (), *, predictor: str | None = None
) -> Path:
    """Write damage, layers × grids, with the choices of `plans` marked, as a PNG, atomically; return its path.

    Raises:
        PlanError: a plan is for another model, or the profile has no such predictor.
        OutputError: the file cannot be written.
    """
    check_plans(profile, plans)
    table = profile.table(predictor)
    order = by_width(table.grids)
    columns = [table.grids[j] for j in order]
    floor = log_floor(value for row in table.damage for value in row)
    values = np.array([clipped([row[j] for j in order], floor) for row in table.damage])
    size = (1.9 + 0.75 * len(columns), max(1.6 + 0.24 * len(table.sites), LEAST_HEIGHT))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    norm = LogNorm() if floor is not None and values.min() < values.max() else Normalize()
    image = axes.imshow(values, norm=norm, cmap="cividis_r", aspect="auto")
    for index, (plan, label) in enumerate(zip(plans, plan_labels(plans), strict=True)):
        chosen = dict(zip(plan.inventory.names, plan.names, strict=True))
        shift = 0.8 * ((index + 0.5) / len(plans) - 0.5)
        cells = [(columns.index(chosen[s]) + shift, row) for row, s in enumerate(table.sites) if chosen[s] in columns]
        marker = MATPLOTLIB_MARKERS[SYMBOLS[index % len(SYMBOLS)]]
        x, y = [x for x, _ in cells], [y for _, y in cells]
        axes.scatter(x, y, marker=marker, s=26, c="white", edgecolors="black", label=label)
    name_places(axes, columns)
    axes.set_yticks(range(len(table.sites)), short_names(table.sites, LABEL), fontsize="small")
    figure.colorbar(image, ax=axes, label=f"{table.predictor} ({unit_text(table.unit)})")
    if plans:
        figure.legend(loc="outside upper center", ncols=min(3, len(plans)), frameon=False, fontsize="small")
    return save_picture(figure, path)


def curvature_png(geometry: ModelGeometry, path: Path | str, plans: Sequence[Plan] = ()) -> Path:
    """Write trace per weight of every layer, with the bits of `plans` over it, as a PNG, atomically; return its path.

    Raises:
        PlanError: no trace was measured.
        OutputError: the file cannot be written.
    """
    measure = MEASURES[0]
    found = [(site.site, each) for site in geometry.sites if (each := measure.read(site)) is not None]
    if not found:
        raise PlanError("a curvature map needs a geometry with traces")
    names = [name for name, _ in found]
    floor = log_floor(each.value for _, each in found)
    values = np.array(clipped([each.value for _, each in found], floor))[:, None]
    figure = Figure(figsize=(6.4, 1.6 + 0.24 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    norm = LogNorm() if floor is not None and values.min() < values.max() else Normalize()
    widest = max((min(grid.bits, WIDEST_CODE) for plan in plans for grid in plan.grids), default=1)
    extent = (0.5, widest + 0.5, len(names) - 0.5, -0.5)
    image = axes.imshow(values, norm=norm, cmap="cividis_r", aspect="auto", extent=extent, interpolation="nearest")
    for index, (plan, label) in enumerate(zip(plans, plan_labels(plans), strict=True)):
        bits = {name: min(grid.bits, WIDEST_CODE) for name, grid in zip(plan.inventory.names, plan.grids, strict=True)}
        shift = 0.8 * ((index + 0.5) / len(plans) - 0.5)
        marker = MATPLOTLIB_MARKERS[SYMBOLS[index % len(SYMBOLS)]]
        x = [bits[name] + shift for name in names]
        axes.scatter(x, range(len(names)), marker=marker, s=26, c="white", edgecolors="black", label=label)
    axes.set_yticks(range(len(names)), short_names(names, LABEL), fontsize="small")
    axes.set_xlabel(f"bits per weight (codes; {WIDEST_CODE} stands for all wider ones)")
    axes.xaxis.set_visible(bool(plans))
    figure.colorbar(image, ax=axes, label=measure.title)
    if plans:
        figure.legend(loc="outside upper center", ncols=min(3, len(plans)), frameon=False, fontsize="small")
    return save_picture(figure, path)


def spectrum_png(spectrum: Spectrum, path: Path | str) -> Path:
    """Write the density of the Hessian's eigenvalues as a PNG, atomically; return its path.

    Raises:
        OutputError: the file cannot be written.
    """
    places, density, low, high = spectrum_curve(spectrum)
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.fill_between(places, low, high, color=OKABE_ITO[0], alpha=0.25, linewidth=0)
    axes.plot(places, density, color=OKABE_ITO[0], linewidth=1.5, label="density ± standard error")
    top = [each.value for each in spectrum.top]
    axes.plot(top, [min(density)] * len(top), "^", color=OKABE_ITO[1], label="largest eigenvalues")
    axes.set_yscale("log")
    axes.set_xlabel("eigenvalue of the Hessian (nats per squared weight unit)")
    axes.set_ylabel("share of eigenvalues per unit")
    plain_axes(axes)
    axes.legend(frameon=False, fontsize="small")
    return save_picture(figure, path)


def waterfall_png(fall: Waterfall, path: Path | str) -> Path:
    """Write contributions of the layers and the three tiers of one plan as a PNG, atomically; return its path.

    Raises:
        OutputError: the file cannot be written.
    """
    names, sizes = list(fall.contributions), list(fall.contributions.values())
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    estimate = fall.tiers[1].mean or 0.0
    rows = [*short_names(names, LABEL), CANCELLED, TOTAL]
    colors = [OKABE_ITO[0]] * len(names) + ["#8c8c8c", OKABE_ITO[1]]
    figure = Figure(figsize=(7.2, 2.6 + 0.24 * len(rows)), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=(1.2, 0.6 + 0.24 * len(rows)))
    below.barh(range(len(rows)), [*sizes, fall.cancelled, estimate], left=[*starts, estimate, 0.0], color=colors)
    below.set_yticks(range(len(rows)), rows, fontsize="small")
    below.invert_yaxis()
    below.set_xlabel("largest output change, contributions")
    means = [(row, tier.mean) for row, tier in enumerate(fall.tiers) if tier.mean]
    above.plot([mean for _, mean in means], [row for row, _ in means], "o", color=OKABE_ITO[2])
    above.set_yticks(range(3), [tier.name for tier in fall.tiers], fontsize="small")
    above.set_ylim(2.5, -0.5)
    above.set_xscale("log" if fall.finite else "linear")
    above.set_xlabel("largest output change, three tiers")
    for axes in (above, below):
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return save_picture(figure, path)


def line_png(line: Line, path: Path | str) -> Path:
    """Write the loss along one direction, with the basin's edge, as a PNG, atomically; return its path.

    Raises:
        OutputError: the file cannot be written.
    """
    places, rises, floor = line_points(line)
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    axes = figure.add_subplot()
    low = [max(min(error, value - floor), 0.0) for error, value in zip(line.stderr, rises, strict=True)]
    high = [min(error, FURTHEST) for error in line.stderr]
    style: dict[str, Any] = {"color": OKABE_ITO[0], "linewidth": 1.5, "elinewidth": 0.8, "markersize": 4}
    axes.errorbar(places, rises, yerr=[low, high], marker="o", label="loss ± standard error", **style)
    below = [place for place, value in zip(places, rises, strict=True) if value <= floor]
    if below:
        hollow: dict[str, Any] = {"color": "white", "markeredgecolor": OKABE_ITO[0], "markersize": 4, "zorder": 2.5}
        axes.plot(below, [floor] * len(below), "o", label="zero or below", **hollow)
    axes.axhline(line.tolerance, color=OKABE_ITO[1], linestyle="--", label=f"basin's edge ({line.tolerance:g} nats)")
    for place in half_steps(places[0], places[-1]):
        axes.axvline(place, color="#808080", linestyle=":", linewidth=0.8)
    for index, marker in enumerate(line.markers):
        value = max(interpolate(line.places, [min(rise, FURTHEST) for rise in line.rise], marker.x), floor)
        symbol = MATPLOTLIB_MARKERS[SYMBOLS[index % len(SYMBOLS)]]
        edges: dict[str, Any] = {"color": "white", "markeredgecolor": "black", "markersize": 8, "zorder": 3}
        axes.plot([marker.x / line.step], [value], symbol, label=marker.name, **edges)
    axes.set_yscale("log")
    axes.set_xlabel(STEPS)
    axes.set_ylabel(RISE)
    plain_axes(axes)
    axes.legend(frameon=False, fontsize="small")
    return save_picture(figure, path)


def plane_png(plane: Plane, path: Path | str) -> Path:
    """Write the loss on a plane, with the basin's edge, as a PNG, atomically; return its path.

    Raises:
        OutputError: the file cannot be written.
    """
    levels, edge = plane_levels(plane)
    figure = Figure(figsize=(7.2, 5.0), layout="constrained")
    axes = figure.add_subplot()
    filled = axes.contourf(plane.xs, plane.ys, levels, levels=24, cmap="cividis_r")
    axes.contour(plane.xs, plane.ys, levels, levels=[edge], colors=[OKABE_ITO[1]], linewidths=2.5, linestyles="solid")
    for draw, values in ((axes.axvline, plane.xs), (axes.axhline, plane.ys)):
        for place in half_steps(values[0], values[-1]):
            draw(place, color="white", linestyle=":", linewidth=0.8)
    for index, marker in enumerate(plane.markers):
        symbol = MATPLOTLIB_MARKERS[SYMBOLS[index % len(SYMBOLS)]]
        axes.scatter([marker.x], [marker.y], marker=symbol, s=60, c="white", edgecolors="black", label=marker.name)
    axes.plot([], [], color=OKABE_ITO[1], linewidth=2.5, label=f"basin's edge ({plane.tolerance:g} nats)")
    low, high = min(map(min, levels)), max(map(max, levels))
    ticks = [tick for tick in (edge - 1, edge, edge + 1, edge + 2) if low <= tick <= high]
    bar = figure.colorbar(filled, ax=axes, label=RISE)
    bar.set_ticks(ticks, labels=[f"{10**tick:.2g}" for tick in ticks])
    axes.set_xlabel(STEPS)
    axes.set_ylabel("across, grid steps")
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize="small")
    return save_picture(figure, path)


def name_places(axes: Axes, names: Sequence[str]) -> None:
    """Label the places 0, 1, … along x; many or long names stand askew."""
    askew = sum(map(len, names)) > ASKEW
    turn: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor", "fontsize": "small"}
    axes.set_xticks(range(len(names)), [shorten(name, LABEL) for name in names], **(turn if askew else {}))


def plain_axes(axes: Axes) -> None:
    """Draw a fine grid below everything, and no box."""
    axes.set_axisbelow(True)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def save_picture(figure: Figure, path: Path | str) -> Path:
    """Write the picture, whole or not at all; the same figure gives the same bytes."""
    target = Path(path)
    FigureCanvasAgg(figure)
    with storage.atomic_path(target) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})
    return target
