"""Who is right about depth follows from the bits of the layers."""

from __future__ import annotations

from typing import Any

import pytest

from geoquant.study.results import Result, Results
from geoquant.study.studies.depth import ends, falling, first_layer, over_depth, rising, run, settled

CELL: dict[str, Any] = {
    "net": "digits_cnn",
    "data": "digits",
    "seed": 0,
    "images": 300,
    "epochs": 4,
    "calibration": 64,
    "test": 100,
    "average": 3.5,
}


def made(*bits: int) -> Results:
    last = len(bits) - 1
    rows = tuple(
        {"layer": str(at), "depth": at / last, "weights": 10, "bits_exact": each, "kl_3": 0.1}
        for at, each in enumerate(bits)
    )
    metrics = {"layers": len(bits), "correlation": None, "correlation_alone": None}
    return Results((Result({"net": "n", "data": "d", "seed": 0}, metrics, rows),), "again")


@pytest.mark.parametrize(
    ("bits", "later", "early", "at_ends", "so"),
    [
        ((2, 3, 4), "holds", "fails", "fails", "later need more"),
        ((8, 4, 4, 3), "fails", "holds", "fails", "early need more"),
        ((8, 3, 3, 8), "fails", "fails", "holds", "alike"),
    ],
)
def test_one_table_settles_it(bits: tuple[int, ...], later: str, early: str, at_ends: str, so: str) -> None:
    found = made(*bits)
    assert [claim(found).verdict for claim in (rising, falling, ends)] == [later, early, at_ends]
    assert first_layer(found).verdict == ("holds" if bits[0] < sum(bits[1:]) / (len(bits) - 1) else "fails")
    (row,) = settled(found).rows
    assert row[-1] == so
    assert over_depth(found).series[0].y == tuple(map(float, bits))


def test_layers_of_a_trained_net() -> None:
    found = run(CELL)
    assert found["layers"] == len(found["rows"]) == 5
    for row in found["rows"]:
        assert 2 <= row["bits_exact"] <= 8
        assert row["kl_2"] >= row["kl_8"]
        assert row["condition_number"] >= 1
        assert row["trace_per_weight"] > 0
    average = sum(row["bits_exact"] * row["weights"] for row in found["rows"]) / sum(
        r["weights"] for r in found["rows"]
    )
    assert 3 < average <= 3.8
