"""What a person sees: plans swept and evaluated, one page that shows all of it, and a site of studies."""

from geoquant.report.basin_figures import line_plot, plane_plot
from geoquant.report.figures import cost, damage_curves, pareto
from geoquant.report.geometry_figures import spectrum_plot, waterfall_plot
from geoquant.report.heatmaps import bits_heatmap, curvature_map, grid_heatmap
from geoquant.report.page import render, write_report
from geoquant.report.png import (
    curvature_png,
    heatmap_png,
    line_png,
    pareto_png,
    plane_png,
    spectrum_png,
    waterfall_png,
)
from geoquant.report.site import Planned, render_index, write_site
from geoquant.report.study_figures import plot
from geoquant.report.study_page import render_study
from geoquant.report.study_png import figure_png
from geoquant.report.sweep import Point, comparison_plans, measure_point, sweep, to_frame
from geoquant.report.verdict import Comparison, Verdict, compare, scoreboard, verdict
from geoquant.report.waterfall import Tier, Waterfall, measure_waterfall

__all__ = [
    "Comparison",
    "Planned",
    "Point",
    "Tier",
    "Verdict",
    "Waterfall",
    "bits_heatmap",
    "compare",
    "comparison_plans",
    "cost",
    "curvature_map",
    "curvature_png",
    "damage_curves",
    "figure_png",
    "grid_heatmap",
    "heatmap_png",
    "line_plot",
    "line_png",
    "measure_point",
    "measure_waterfall",
    "pareto",
    "pareto_png",
    "plane_plot",
    "plane_png",
    "plot",
    "render",
    "render_index",
    "render_study",
    "scoreboard",
    "spectrum_plot",
    "spectrum_png",
    "sweep",
    "to_frame",
    "verdict",
    "waterfall_plot",
    "waterfall_png",
    "write_report",
    "write_site",
]
