"""The PNGs are pictures of the right content, the same each time, and never half written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geoquant.errors import OutputError, PlanError
from geoquant.report import heatmap_png, pareto_png
from geoquant.report.palette import OKABE_ITO


def colours(path: Path) -> set[tuple[int, int, int]]:
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(np.int64)
    codes = np.unique(pixels @ [1 << 16, 1 << 8, 1])
    return {(code >> 16, code >> 8 & 255, code & 255) for code in codes.tolist()}


def test_pareto_draws_every_method_in_its_colour(points, float_point, tmp_path: Path) -> None:
    found = colours(pareto_png(points, tmp_path / "pareto.png", float_point))
    for colour in OKABE_ITO[:2]:
        assert tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5)) in found
    unused = tuple(int(OKABE_ITO[3][i : i + 2], 16) for i in (1, 3, 5))
    assert unused not in found


def test_heatmap_spans_the_colour_scale(profile, plans, tmp_path: Path) -> None:
    found = colours(heatmap_png(profile, tmp_path / "heatmap.png", plans))
    assert (0, 34, 78) in found  # dark end of cividis: most damage
    assert min(abs(r - 254) + abs(g - 232) + abs(b - 56) for r, g, b in found) < 10  # its yellow end


def test_same_input_same_bytes(profile, points, tmp_path: Path) -> None:
    first, second = (pareto_png(points, tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
    assert first == second
    first, second = (heatmap_png(profile, tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
    assert first == second


def test_hard_tables_are_drawn(profile_of, tmp_path: Path) -> None:
    profile = profile_of(["$only<>$"], ["int2", "int4"])
    for predictor in ("one_layer_kl", "weight_error", "hawq_v2"):
        path = heatmap_png(profile, tmp_path / f"{predictor}.png", predictor=predictor)
        assert Image.open(path).size[0] > 100


def test_errors_leave_nothing_behind(profile, points, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="at least one"):
        pareto_png([], tmp_path / "pareto.png")
    with pytest.raises(PlanError, match="no scores of 'nonsense'"):
        heatmap_png(profile, tmp_path / "heatmap.png", predictor="nonsense")
    blocker = tmp_path / "folder.png"
    blocker.mkdir()
    with pytest.raises(OutputError):
        pareto_png(points, blocker)
    assert list(tmp_path.iterdir()) == [blocker]
