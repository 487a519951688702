"""Plots, pictures and tables of a study show the numbers that the study gave."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geoquant.findings import Figure, Series
from geoquant.report import figure_png, plot
from geoquant.report.palette import OKABE_ITO
from geoquant.report.study_panels import MOST_ROWS, figure_panel, figure_table
from geoquant.report.study_png import draw
from studies import BARS, DAMAGE, FIGURES, HEATMAP, LINES, SCATTER, STACKED


def colours(path: Path) -> set[tuple[int, ...]]:
    codes = np.unique(np.asarray(Image.open(path).convert("RGB")).astype(np.int64) @ [1 << 16, 1 << 8, 1])
    return {(code >> 16, code >> 8 & 255, code & 255) for code in codes.tolist()}


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


@pytest.mark.parametrize("figure", [LINES, SCATTER, BARS, STACKED], ids=lambda figure: figure.name)
def test_a_plot_holds_the_values_of_its_series(figure: Figure) -> None:
    for trace, series in zip(plot(figure).data, figure.series, strict=True):
        assert tuple(trace.x) == series.x
        assert tuple(trace.y) == series.y
        if series.spread:
            assert tuple(trace.error_y.array) == series.spread


def test_uniform_is_grey_and_dashed_and_evidence_has_colour() -> None:
    uniform, guided = plot(LINES).data
    assert uniform.line.dash == "dash"
    assert guided.line.color == OKABE_ITO[0]


def test_what_a_logarithmic_axis_cannot_show_lies_open_on_its_floor() -> None:
    (trace,) = plot(DAMAGE).data
    floor = 0.3 / 3
    assert tuple(trace.y) == (1.0, 0.3, pytest.approx(floor), None)
    assert list(trace.marker.symbol) == ["circle", "circle", "circle-open", "circle"]
    assert "0" in trace.text[2]
    assert trace.error_y.arrayminus[1] == pytest.approx(0.3 - floor)  # not through the floor
    assert trace.error_y.array[1] == 1.0


def test_categories_keep_their_order_and_numbers_their_distance() -> None:
    assert tuple(plot(BARS).layout.xaxis.categoryarray) == BARS.series[0].x
    assert plot(LINES).layout.xaxis.type is None
    assert plot(SCATTER).layout.xaxis.type == "log"
    assert plot(STACKED).layout.barmode == "stack"


def test_a_map_has_a_gap_where_nothing_was_measured() -> None:
    (cells,) = plot(HEATMAP).data
    assert [list(row) for row in cells.z] == [[4.0, 8.0], [None, 2.0]]
    assert [list(row) for row in cells.text] == [["4", "8"], ["", "2"]]
    assert cells.customdata[1][1].startswith("<b>head</b><br>method: geoquant<br>bits: 2")


def test_notes_and_names_are_shown_letter_by_letter() -> None:
    series = Series("<b>", (1.0,), (2.0,), notes=("<i>",))
    assert "&lt;b&gt;" in plot(replace(SCATTER, series=(series,))).data[0].text[0]
    assert "&lt;i&gt;" in plot(replace(SCATTER, series=(series,))).data[0].text[0]


def test_tables_put_series_side_by_side_where_they_share_places() -> None:
    table = figure_table(BARS)
    assert table.columns == ("layer", "digits", "MNIST")
    rows = [[cell.text for cell in row] for row in table.rows]
    assert rows == [["stem", "5 ± 1", "4"], ["body.0.conv", "3 ± 0", "2"], ["head", "2 ± 0.5", "–"]]
    assert [row[1].key for row in table.rows] == [5.0, 3.0, 2.0]


def test_points_at_one_place_get_a_row_each() -> None:
    rows = [[cell.text for cell in row] for row in figure_table(SCATTER).rows]
    assert rows == [["plans", "0.1", "0.2", "a"], ["plans", "1", "0.9", "b"], ["plans", "1", "1.1", "c"]]


def test_a_map_is_a_table_of_its_rows() -> None:
    rows = [[cell.text for cell in row] for row in figure_table(HEATMAP).rows]
    assert rows == [["stem", "4", "8"], ["head", "–", "2"]]


def test_long_tables_are_cut_and_say_so() -> None:
    many = Series("plans", tuple(map(float, range(1000))), tuple(map(float, range(1000))))
    (table,) = figure_panel(replace(SCATTER, series=(many,)), ()).tables
    assert len(table.rows) == MOST_ROWS
    assert "first 400 of 1,000" in table.caption


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_pictures_show_every_series(figure: Figure, tmp_path: Path) -> None:
    found = colours(figure_png(figure, tmp_path / "a.png"))
    if figure is HEATMAP:
        assert (0, 34, 78) in found  # dark end of cividis
    else:
        wanted = OKABE_ITO[: sum(series.name != "uniform" for series in figure.series)]
        assert {rgb(colour) for colour in wanted} <= found


def test_pictures_name_every_place_along_x() -> None:
    for figure, wanted in ((BARS, BARS.series[0].x), (STACKED, ("mlp", "cnn")), (HEATMAP, ("uniform", "geoquant"))):
        axes = draw(figure).axes[0]
        assert tuple(label.get_text() for label in axes.get_xticklabels()) == wanted
    assert draw(DAMAGE).axes[0].get_yscale() == "log"
    assert draw(SCATTER).axes[0].get_xscale() == "log"
    assert draw(LINES).axes[0].get_xscale() == draw(LINES).axes[0].get_yscale() == "linear"


def test_stacks_stand_on_each_other(tmp_path: Path) -> None:
    """The upper bar of a stack hides none of the lower one: both areas are as large as their values say."""
    pixels = np.asarray(Image.open(figure_png(STACKED, tmp_path / "a.png")).convert("RGB"))
    below, above = ((pixels == rgb(colour)).all(-1).sum() for colour in OKABE_ITO[:2])
    assert above / below == pytest.approx(7 / 3, rel=0.05)  # 3 + 4 seconds over 1 + 2


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_figures_without_a_single_value_are_drawn(figure: Figure, tmp_path: Path) -> None:
    empty = replace(figure, series=tuple(Series(each.name, each.x, (None,) * len(each.x)) for each in figure.series))
    assert Image.open(figure_png(empty, tmp_path / "a.png")).size[0] > 100
    assert len(plot(empty).data) > 0
    nothing = replace(figure, series=())
    assert figure_panel(nothing, ()).json


def test_a_short_logarithmic_axis_names_plain_numbers() -> None:
    figure = Figure("f", "lines", "L", "bits", "loss", (Series("a", (1.2, 9.0), (0.3, 0.1)),), alt="a line", log_y=True)
    picture = draw(figure)
    picture.canvas.draw()
    (axes,) = picture.axes
    shown = [label.get_text() for label in axes.yaxis.get_ticklabels(which="both") if label.get_text()]
    assert "0.2" in shown
    assert not any("×" in label or "mathdefault" in label for label in shown)
