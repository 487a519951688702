"""Draw the pictures of the README and of docs/results.md from the committed results.

python benchmarks/pictures.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common import RESULTS
from geoquant.evaluation import Mean
from geoquant.findings import Figure, Series
from geoquant.report import Point, figure_png, pareto_png

IMAGES = Path(__file__).parents[1] / "docs" / "images"
SHOWN = {
    "uniform, full-range, MSE": "uniform, full-range, MSE scales",
    "uniform, narrow, max-abs": "uniform, narrow, max-abs scales",
    "uniform, affine, MSE": "uniform, affine, MSE scales",
    "hawq_v2 + milp, full-range, MSE": "HAWQ-V2 trace, exact solver",
    "weight_error + milp, full-range, MSE": "weight error, exact solver",
    "one_layer_kl + milp, full-range, MSE, signed scale": "one-layer KL, exact solver, signed scales",
}


def point(row: dict[str, Any], method: str) -> Point:
    """Turn a row of results into a point; the bar is the spread over calibration sets."""
    accuracy = Mean(row["accuracy"] / 100, row["spread"] / 100, row["seeds"])
    known = Mean(row["kl"], 0.0, row["seeds"])
    return Point(method, row["label"], row["average_bits"], round(row["bytes"]), accuracy, known, known)


def nearest_rounding() -> Path:
    """Draw plans of nearest rounding: accuracy over bytes."""
    rows = json.loads((RESULTS / "resnet20_rtn.json").read_text())["rows"]
    points = [point(row, SHOWN[row["method"]]) for row in rows if row["method"] in SHOWN]
    exact = next(point(row, "float") for row in rows if row["method"] == "float")
    return pareto_png(points, IMAGES / "resnet20_pareto.png", exact)


def beside_peers() -> Path:
    """Draw geoquant and other tools: accuracy over delivered bits, a line a tool."""
    rows = [row for row in json.loads((RESULTS / "peers.json").read_text())["rows"] if row.get("accuracy") is not None]
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:  # tools without a search are asked width by width, under a name each
        found.setdefault(row["contestant"].split(", int")[0], []).append((row["average_bits"], row["accuracy"]))
    names = sorted(found, key=lambda name: (not name.startswith("geoquant"), name))
    series = tuple(Series(name, *zip(*sorted(found[name]), strict=True)) for name in names)
    words = "; ".join(f"{each.name} from {each.y[0]:.1f} to {each.y[-1]:.1f} %" for each in series)
    figure = Figure(
        "resnet20-peers",
        "lines",
        "ResNet-20 on CIFAR-10, weights only (float: 91.73 %)",
        "delivered bits a weight, scales included",
        "test accuracy, %",
        series,
        f"A line a tool, from its fewest bits to its most: {words}.",
    )
    return figure_png(figure, IMAGES / "resnet20_peers.png")


def main() -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    for draw in (nearest_rounding, beside_peers):
        print(f"wrote {draw()}")


if __name__ == "__main__":
    main()
