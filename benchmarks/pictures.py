"""Draw the README's picture from the committed results.

python benchmarks/pictures.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common import RESULTS
from geoquant.evaluation import Mean
from geoquant.report import Point, pareto_png

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "resnet20_pareto.png"
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


def main() -> None:
    rows = json.loads((RESULTS / "resnet20_rtn.json").read_text())["rows"]
    points = [point(row, SHOWN[row["method"]]) for row in rows if row["method"] in SHOWN]
    exact = next(point(row, "float") for row in rows if row["method"] == "float")
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    print(f"wrote {pareto_png(points, PICTURE, exact)}")


if __name__ == "__main__":
    main()
