"""The two pictures that a README or a paper wants, as PNG by matplotlib.

They follow the same rules as the page: colour means evidence, grey dashes mean uniform, uncertain points
carry their standard error. No display is needed and no global state of matplotlib is touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from geoquant import storage
from geoquant.errors import PlanError
from geoquant.plan import Plan
from geoquant.report.axes import by_width, clipped, log_floor
from geoquant.report.heatmaps import check_plans
from geoquant.report.labels import plan_labels, short_names, unit_text
from geoquant.report.palette import MATPLOTLIB_DASHES, MATPLOTLIB_MARKERS, SYMBOLS, series, styles
from geoquant.report.sweep import Point
from geoquant.sensitivity import Profile

DPI = 200


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
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small", loc="lower right")
    return _save(figure, path)


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
    figure = Figure(figsize=(1.9 + 0.75 * len(columns), 1.6 + 0.24 * len(table.sites)), layout="constrained")
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
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(table.sites)), short_names(table.sites, 34), fontsize="small")
    figure.colorbar(image, ax=axes, label=f"{table.predictor} ({unit_text(table.unit)})")
    if plans:
        figure.legend(loc="outside upper center", ncols=min(3, len(plans)), frameon=False, fontsize="small")
    return _save(figure, path)


def _save(figure: Figure, path: Path | str) -> Path:
    """Write the picture, whole or not at all; the same figure gives the same bytes."""
    target = Path(path)
    FigureCanvasAgg(figure)
    with storage.atomic_path(target) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})
    return target
