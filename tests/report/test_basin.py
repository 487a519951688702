"""Slices and diagnoses on the page and in pictures: the numbers are those that were measured."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from PIL import Image
from torch import nn

from geoquant.basin import Diagnosis, Line, Marker, Plane, SliceSettings, WalkSettings, WidthSettings, diagnose
from geoquant.plan import Plan, uniform_plan
from geoquant.report import line_plot, line_png, plane_plot, plane_png, render
from geoquant.report.basin_figures import half_steps, interpolate, plane_levels
from geoquant.sensitivity import Profile, profile
from nets import small_batches, small_net

LINE = Line(
    "displacement", 2.0, (-0.5, 0.0, 1.0, 2.0), (-0.01, 0.0, 0.5, math.inf), (0.01, 0.0, 0.1, 0.0), 0.05,
    (Marker("float", 0.0), Marker("rounded", 1.0)),
)  # fmt: skip
PLANE = Plane(
    (0.0, 0.5, 1.0), (-1.0, 1.0), ((0.0, 0.01, 5.0), (0.2, math.inf, -1.0)), 0.05,
    (Marker("float", 0.0, 0.0), Marker("rounded", 0.5, 0.0), Marker("<b>odd", 0.4, 0.9)),
)  # fmt: skip


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return small_net()


@pytest.fixture(scope="module")
def plan(net: nn.Module) -> Plan:
    return uniform_plan(net, "int2")


@pytest.fixture(scope="module")
def found(net: nn.Module, plan: Plan) -> Diagnosis:
    widths = WidthSettings(randoms=1, eigenvectors=1, lanczos_steps=4)
    slices = SliceSettings(samples=16, line=6, plane=3)
    return diagnose(
        net,
        plan,
        small_batches(4),
        tolerance=0.001,
        widths=widths,
        walks=WalkSettings(5, 5, exhaustive=True),
        slices=slices,
    )


@pytest.fixture(scope="module")
def evidence(net: nn.Module) -> Profile:
    return profile(net, small_batches(), grids=["int2"], predictors=["weight_error"])


def test_a_line_is_drawn_in_grid_steps_with_its_edge_and_codewords() -> None:
    curve, edge, start, rounded = line_plot(LINE).data
    assert tuple(curve.x) == (-0.25, 0.0, 0.5, 1.0)
    assert curve.y[2] == 0.5
    assert curve.y[3] == 1e6  # beyond the wall, bounded
    assert min(curve.y) > 0
    assert tuple(edge.y) == (0.05, 0.05)
    assert (start.x[0], rounded.x[0]) == (0.0, 0.5)
    assert rounded.y[0] == 0.5
    figure = line_plot(LINE)
    assert [shape.x0 for shape in figure.layout.shapes] == half_steps(-0.25, 1.0) == [0.0, 0.5, 1.0]
    assert "Infinity" not in figure.to_json()


def test_a_plane_shows_the_edge_where_the_rise_is_the_tolerance() -> None:
    levels, edge = plane_levels(PLANE)
    assert edge == pytest.approx(math.log10(0.05))
    for row, rises in zip(levels, PLANE.rise, strict=True):
        for level, rise in zip(row, rises, strict=True):
            assert (level <= edge) == (rise <= PLANE.tolerance)
            assert math.isfinite(level)
    border = plane_plot(PLANE).data[1]
    assert (border.contours.start, border.contours.end) == (edge, edge)
    assert plane_plot(PLANE).data[-1].text[0] == "&lt;b&gt;odd"


def test_interpolation_follows_the_broken_line() -> None:
    assert interpolate((0.0, 1.0, 3.0), (0.0, 2.0, 0.0), 2.0) == 1.0
    assert interpolate((0.0, 1.0), (5.0, 7.0), -1.0) == 5.0
    assert interpolate((0.0, 1.0), (5.0, 7.0), 9.0) == 7.0


def test_pictures_are_written_whole_and_alike(found: Diagnosis, tmp_path: Path) -> None:
    for draw, value in ((line_png, LINE), (plane_png, PLANE), (line_png, found.lines[0]), (plane_png, found.planes[0])):
        one, two = (draw(value, tmp_path / name).read_bytes() for name in ("one.png", "two.png"))
        assert one == two
        assert min(Image.open(tmp_path / "one.png").size) > 500


def cells(html: str, caption: str) -> list[list[str]]:
    body = re.search(rf"<caption>{re.escape(caption)}</caption>.*?<tbody>(.*?)</tbody>", html, re.S)
    assert body is not None, caption
    return [re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", row) for row in body[1].split("<tr>")[1:]]


def test_the_page_tells_the_diagnosis(evidence: Profile, plan: Plan, found: Diagnosis) -> None:
    html = render("diagnosed", profile=evidence, plans=[plan], diagnoses=[found, found])
    assert 'href="#diagnosis"' in html
    assert f"<h3>{found.verdict}: int2" in html
    rows = cells(html, "Layers moved alone")
    assert [row[0] for row in rows] == ["stem", "block", "head"]
    assert [row[1] for row in rows] == [str(width.radius) for width in found.width.layers]
    codewords = cells(html, "Codewords that were tried, judged on 32 samples that made none of them")
    assert [row[0] for row in codewords] == [each.name for each in found.candidates]
    for row, each in zip(codewords, found.candidates, strict=True):
        assert row[3] == ("inside" if each.rise.value <= 0.001 else "outside")
    ids = re.findall(r'<figure id="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    assert {"slice-0-0", "plane-0-0", "slice-1-0", "plane-1-0"} <= set(ids)


def test_a_page_without_diagnosis_has_no_such_section(evidence: Profile) -> None:
    assert "Diagnosis" not in render("plain", profile=evidence).split("<script>")[0]
