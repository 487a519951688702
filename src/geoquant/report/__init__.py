"""What a person sees: plans swept and evaluated, and one self-contained page that shows all of it."""

from geoquant.report.figures import cost, damage_curves, pareto
from geoquant.report.heatmaps import bits_heatmap, grid_heatmap
from geoquant.report.page import render, write_report
from geoquant.report.png import heatmap_png, pareto_png
from geoquant.report.sweep import Point, comparison_plans, measure_point, sweep, to_frame
from geoquant.report.verdict import Comparison, Verdict, compare, scoreboard, verdict

__all__ = [
    "Comparison",
    "Point",
    "Verdict",
    "bits_heatmap",
    "compare",
    "comparison_plans",
    "cost",
    "damage_curves",
    "grid_heatmap",
    "heatmap_png",
    "measure_point",
    "pareto",
    "pareto_png",
    "render",
    "scoreboard",
    "sweep",
    "to_frame",
    "verdict",
    "write_report",
]
