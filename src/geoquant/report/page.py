"""One page that shows what was measured, what was decided, what came of it, and what it cost.

The page is a single file: styles, script and plotly are inside, nothing is fetched, and a content policy
forbids that anything ever is. The same input gives the same bytes.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from plotly.offline import get_plotlyjs

import geoquant
from geoquant import storage
from geoquant.basin import Diagnosis
from geoquant.plan import Plan, uniform_plan
from geoquant.recovery import Trace
from geoquant.report import geometry_panels, panels, tables
from geoquant.report.basin_panels import diagnosis_view
from geoquant.report.heatmaps import check_plans, measures_of
from geoquant.report.labels import counted, percent, plan_labels
from geoquant.report.pages import Fact, fill
from geoquant.report.palette import is_uniform
from geoquant.report.recovery_panels import trace_panel
from geoquant.report.sweep import Point
from geoquant.report.verdict import guided_methods, verdict
from geoquant.report.waterfall import Waterfall
from geoquant.sensitivity import Profile

CLOSE_TO_FLOAT = 0.01


def render(
    title: str,
    *,
    profile: Profile,
    plans: Sequence[Plan] = (),
    points: Sequence[Point] = (),
    float_point: Point | None = None,
    waterfalls: Sequence[Waterfall] = (),
    diagnoses: Sequence[Diagnosis] = (),
    notes: Mapping[str, str] | None = None,
    seconds: Mapping[str, float] | None = None,
    command: str | None = None,
    trace: Trace | None = None,
) -> str:
    """Return the report as one HTML text.

    Args:
        title: heading of the page.
        profile: the evidence.
        plans: plans for the profile's model.
        points: evaluated plans. The verdict speaks of the first method that is not uniform.
        float_point: the float model, evaluated on the same data.
        waterfalls: error tiers of plans on calibration inputs (see `measure_waterfall`).
        diagnoses: what rounding by a plan was predicted to do (see `geoquant.diagnose`).
        notes: more lines for the provenance, by name.
        seconds: wall time of each step of the whole path, by name.
        command: the command that made all this.
        trace: of a recovery.

    Raises:
        PlanError: a plan is for another model than the profile.
    """
    check_plans(profile, plans)
    points = tuple(dict.fromkeys(points))
    float_bytes = float_point.bytes if float_point is not None else uniform_plan(profile.inventory, "fp32").bytes
    content: dict[str, Any] = {
        "title": title,
        "done": _done(profile, plans, points),
        "verdict": verdict(points),
        "facts": _facts(profile, plans, points, float_point, float_bytes),
        "sections": _sections(points, plans, diagnoses, trace, waterfalls, profile.geometry is not None),
        "results": panels.pareto_panel(points, float_point) if points else None,
        "scores": tables.scoreboard_table(points),
        "overview": tables.plans_table(plans, float_bytes),
        "bits": panels.bits_panel(plans) if plans else None,
        "plan_tables": [tables.plan_table(plan, label) for plan, label in zip(plans, plan_labels(plans), strict=True)],
        "diagnoses": [diagnosis_view(each, index) for index, each in enumerate(diagnoses)],
        "recovery": trace_panel(trace) if trace is not None and trace.points else None,
        "heatmap": panels.heatmap_panel(profile, plans),
        "curves": panels.curves_panel(profile),
        **_geometry(profile, plans, waterfalls),
        "cost": panels.cost_panel(profile),
        "steps": tables.seconds_table(seconds or {}),
        "provenance": _provenance(profile, notes or {}, command),
        "plotly": get_plotlyjs(),
    }
    return fill("report.html.j2", content)


def write_report(
    path: Path | str,
    title: str,
    *,
    profile: Profile,
    plans: Sequence[Plan] = (),
    points: Sequence[Point] = (),
    float_point: Point | None = None,
    waterfalls: Sequence[Waterfall] = (),
    diagnoses: Sequence[Diagnosis] = (),
    notes: Mapping[str, str] | None = None,
    seconds: Mapping[str, float] | None = None,
    command: str | None = None,
    trace: Trace | None = None,
) -> Path:
    """Write the page of `render` to `path`, atomically; return the path.

    Raises:
        OutputError: the file cannot be written; nothing is left behind.
    """
    target = Path(path)
    text = render(
        title,
        profile=profile,
        plans=plans,
        points=points,
        float_point=float_point,
        waterfalls=waterfalls,
        diagnoses=diagnoses,
        notes=notes,
        seconds=seconds,
        command=command,
        trace=trace,
    )
    storage.write_text(target, text)
    return target


def _done(profile: Profile, plans: Sequence[Plan], points: Sequence[Point]) -> str:
    """Say in one sentence what was done."""
    samples = max(table.samples for table in profile.tables)
    text = (
        f"{counted(len(profile.tables[0].sites), 'layer')} with {profile.inventory.weights:,} weights, profiled on "
        f"{counted(len(profile.grids), 'grid')} by {counted(len(profile.tables), 'predictor')}"
    )
    text += f" over {counted(samples, 'calibration sample')}" if samples else " without data"
    parts = [counted(len(plans), "plan")] if plans else []
    parts += [f"{counted(len(points), 'point')} evaluated"] if points else []
    return f"{text}; {', '.join(parts)}." if parts else f"{text}."


def _facts(
    profile: Profile, plans: Sequence[Plan], points: Sequence[Point], float_point: Point | None, float_bytes: int
) -> list[Fact]:
    """Collect the few numbers that a reader wants first."""
    facts = [Fact("float model", f"{float_bytes:,} bytes")]
    if plans:
        sizes = sorted({plan.bytes for plan in plans})
        span = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} – {sizes[-1]:,}"
        facts.append(Fact("plans, bytes", span))
    if float_point is not None:
        facts.append(Fact("float accuracy", percent(float_point.accuracy.value, 2)))
        for method in guided_methods(points)[:1]:
            mine = [point for point in points if point.method == method]
            facts.append(Fact(f"smallest {method} within 1 point of float", _smallest_close(mine, float_point)))
        uniform = [point for point in points if is_uniform(point.method)]
        if uniform:
            facts.append(Fact("smallest uniform within 1 point of float", _smallest_close(uniform, float_point)))
    return facts


def _smallest_close(points: Sequence[Point], float_point: Point) -> str:
    """Name the least size whose accuracy is at most one point below float."""
    sizes = [p.bytes for p in points if p.accuracy.value >= float_point.accuracy.value - CLOSE_TO_FLOAT]
    return f"{min(sizes):,} bytes" if sizes else "none"


def _geometry(profile: Profile, plans: Sequence[Plan], waterfalls: Sequence[Waterfall]) -> dict[str, Any]:
    """Gather the panels of geometry and error; None where nothing was measured."""
    content: dict[str, Any] = dict.fromkeys(("curvature", "network", "spectrum"))
    content["waterfall"] = geometry_panels.waterfall_panel(waterfalls) if waterfalls else None
    geometry = profile.geometry
    if geometry is not None:
        content["network"] = geometry_panels.network_table(geometry)
        if measures_of(geometry):
            content["curvature"] = geometry_panels.curvature_panel(geometry, plans)
        if geometry.spectrum is not None:
            content["spectrum"] = geometry_panels.spectrum_panel(geometry.spectrum)
    return content


def _sections(
    points: Sequence[Point],
    plans: Sequence[Plan],
    diagnoses: Sequence[Diagnosis],
    trace: Trace | None,
    waterfalls: Sequence[Waterfall],
    with_geometry: bool,
) -> list[tuple[str, str]]:
    sections = [("results", "Results")] if points else []
    sections += [("plans", "Plans")] if plans else []
    sections += [("diagnosis", "Diagnosis")] if diagnoses else []
    sections += [("recovery", "Recovery")] if trace is not None and trace.points else []
    sections += [("error", "Error")] if waterfalls else []
    sections += [("sensitivity", "Sensitivity")]
    sections += [("geometry", "Geometry")] if with_geometry else []
    return [*sections, ("cost", "Cost"), ("provenance", "Provenance")]


def _provenance(profile: Profile, notes: Mapping[str, str], command: str | None) -> list[Fact]:
    """Say where the numbers come from: enough to make them again."""
    facts = [Fact("command", command)] if command else []
    facts += [
        Fact("seed", str(profile.seed)),
        Fact("fingerprint of the model", profile.inventory.fingerprint),
        Fact("fingerprint of the calibration data", profile.data or "none"),
        Fact("geoquant", geoquant.__version__),
        Fact("torch", torch.__version__),
        Fact("Python", platform.python_version()),
    ]
    return facts + [Fact(name, value) for name, value in notes.items()]
