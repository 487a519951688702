"""Figures show the numbers they were given."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from geoquant.errors import PlanError
from geoquant.plan import uniform_plan
from geoquant.report import bits_heatmap, cost, damage_curves, grid_heatmap, pareto
from geoquant.report.palette import series, styles


def test_heatmap_colours_by_the_logarithm_of_the_damage(profile) -> None:
    heatmap = grid_heatmap(profile).data[0]
    np.testing.assert_allclose(10 ** np.array(heatmap.z), np.array(profile.tables[0].damage), rtol=1e-12)


def test_heatmap_draws_zeros_at_the_floor_and_says_zero(profile) -> None:
    table = profile.table("hawq_v2")
    damage = np.array(table.damage)
    assert (damage == 0).any()
    heatmap = next(trace for trace in grid_heatmap(profile).data if trace.name == "hawq_v2")
    shown = np.array(heatmap.z)
    assert np.isfinite(shown).all()
    np.testing.assert_allclose(shown[damage == 0], math.log10(damage[damage > 0].min() / 3))
    row, column = np.argwhere(damage == 0)[0]
    assert f"{table.grids[column]}: 0 ± 0" in heatmap.text[row][column]


def test_heatmap_of_nothing_but_zeros_is_drawn(profile) -> None:
    table = profile.tables[0]
    zeros = tuple((0.0,) * len(table.grids) for _ in table.sites)
    empty = replace(profile, tables=(replace(table, damage=zeros, stderr=zeros),))
    assert np.array(grid_heatmap(empty).data[0].z).tolist() == [list(row) for row in zeros]
    assert damage_curves(empty).layout.yaxis.type == "linear"


def test_heatmap_puts_narrow_grids_first(profile_of) -> None:
    profile = profile_of(["a", "b"], ["int8", "ternary", "int2"])
    figure = grid_heatmap(profile)
    assert list(figure.layout.xaxis.ticktext) == ["ternary", "int2", "int8"]
    table = profile.tables[0]
    np.testing.assert_allclose(10 ** np.array(figure.data[0].z)[:, 0], [row[1] for row in table.damage], rtol=1e-12)


def test_marks_sit_in_the_cell_that_each_plan_chose(profile, plans) -> None:
    figure = grid_heatmap(profile, plans)
    marks = [trace for trace in figure.data if trace.type == "scatter"]
    assert len(marks) == len(plans)
    for mark, plan in zip(marks, plans, strict=True):
        chosen = [profile.grids[round(x)] for x in mark.x]
        assert tuple(chosen) == plan.names
        assert list(mark.y) == list(range(len(plan.names)))
    assert len({(x, y) for mark in marks for x, y in zip(mark.x, mark.y, strict=True)}) == 3 * len(plans[0].names)


def test_grids_that_were_not_measured_have_no_mark(profile) -> None:
    plan = uniform_plan(profile.inventory, "int4", {"fc": "fp32"})
    mark = grid_heatmap(profile, [plan]).data[-1]
    assert len(mark.x) == len(plan.names) - 1


def test_a_plan_for_another_model_is_refused(profile, profile_of) -> None:
    stranger = uniform_plan(profile_of(["other"]).inventory, "int4")
    for call in (
        lambda: grid_heatmap(profile, [stranger]),
        lambda: bits_heatmap([stranger, uniform_plan(profile.inventory, "int4")]),
    ):
        with pytest.raises(PlanError, match="model"):
            call()


def test_bits_heatmap_shows_the_width_of_every_layer(plans) -> None:
    cells = bits_heatmap(plans).data[0]
    shown = np.array([[float(text) for text in row] for row in cells.text])
    expected = np.array([[float(name.removeprefix("int")) for name in plan.names] for plan in plans]).T
    np.testing.assert_array_equal(shown, expected)
    assert bits_heatmap(plans).layout.xaxis.title.text == "average bits"


def test_tall_heatmaps_grow_and_keep_every_name(profile_of) -> None:
    names = [f"model.layers.{i // 5}.self_attn.{'qkvog'[i % 5]}_proj" for i in range(200)]
    figure = grid_heatmap(profile_of(names))
    assert figure.layout.height > 200 * 16
    assert list(figure.layout.yaxis.ticktext) == names
    assert len(set(figure.layout.meta["narrow"])) == 200


def test_curves_carry_damage_and_standard_errors(profile) -> None:
    table = profile.tables[0]
    first = damage_curves(profile).data[: len(table.sites)]
    for trace, damage, stderr in zip(first, table.damage, table.stderr, strict=True):
        assert tuple(trace.y) == damage
        assert tuple(trace.error_y.array) == stderr
        assert list(trace.x) == [2, 3, 4, 5, 6, 7, 8]


def test_curves_never_reach_below_a_logarithmic_axis(profile) -> None:
    for trace in damage_curves(profile).data:
        lower = np.array(trace.y) - np.array(trace.error_y.arrayminus)
        assert (np.array(trace.y) > 0).all()
        assert (lower >= 0).all()


def test_ranking_tables_say_so(profile) -> None:
    buttons = damage_curves(profile).layout.updatemenus[0].buttons
    titles = {button.label: button.args[1]["yaxis.title.text"] for button in buttons}
    assert titles["weight_error"] == "weight_error (score, ranks only)"
    assert titles["one_layer_kl"] == "one_layer_kl (nats per prediction)"


def test_every_choice_shows_its_own_traces_once(profile, points, float_point) -> None:
    for figure in (damage_curves(profile), grid_heatmap(profile), pareto(points, float_point)):
        shown = np.array([button.args[0]["visible"] for button in figure.layout.updatemenus[0].buttons])
        assert shown.shape[1] == len(figure.data)
        np.testing.assert_array_equal(shown.sum(0), 1)
        np.testing.assert_array_equal(shown[0], [trace.visible is not False for trace in figure.data])


def test_families_of_grids_are_choices_of_their_own(profile_of) -> None:
    figure = damage_curves(profile_of(["a"], ["ternary", "int2", "int2:affine", "int4", "int4:affine"]))
    labels = [button.label for button in figure.layout.updatemenus[0].buttons]
    assert labels[:3] == ["one_layer_kl, int", "one_layer_kl, int:affine", "one_layer_kl, other grids"]
    assert list(figure.data[0].x) == [2, 4]


def test_pareto_lines_run_from_small_to_large_in_percent_and_kilobytes(points, float_point) -> None:
    figure = pareto(points, float_point)
    line = next(trace for trace in figure.data if trace.name == "geoquant")
    mine = sorted((point for point in points if point.method == "geoquant"), key=lambda point: point.bytes)
    np.testing.assert_allclose(line.x, [point.bytes / 1000 for point in mine])
    np.testing.assert_allclose(line.y, [100 * point.accuracy.value for point in mine])
    np.testing.assert_allclose(line.error_y.array, [100 * point.accuracy.stderr for point in mine])
    assert "KL" in line.text[0]
    assert f"{mine[0].average_bits:.3f} average bits" in line.text[0]


def test_uniform_is_grey_and_dashed_and_split_by_family(points) -> None:
    figure = pareto(points)
    shown = {trace.name: trace for trace in figure.data if trace.visible}
    assert set(shown) == {"geoquant", "hawq_v2 + milp", "uniform, int", "uniform, int:affine"}
    for name, trace in shown.items():
        red, green, blue = (int(trace.line.color[i : i + 2], 16) for i in (1, 3, 5))
        grey = max(red, green, blue) - min(red, green, blue) < 0x20
        assert grey == name.startswith("uniform")
        assert (trace.line.dash != "solid") == name.startswith("uniform")


def test_the_float_line_is_where_the_float_model_is(points, float_point) -> None:
    lines = [trace for trace in pareto(points, float_point).data if trace.name.startswith("float")]
    assert [trace.y[0] for trace in lines] == [
        pytest.approx(100 * float_point.accuracy.value),
        pytest.approx(float_point.cross_entropy.value),
    ]
    assert all(trace.line.dash == "dot" for trace in lines)


def test_pareto_without_points_is_an_error() -> None:
    with pytest.raises(PlanError, match="at least one"):
        pareto([])


def test_equal_points_are_drawn_once(point) -> None:
    twice = [point("geoquant", "a", 1000, 0.5)] * 2
    assert [len(line) for line in series(twice).values()] == [1]


def test_styles_tell_many_methods_apart() -> None:
    methods = [f"method {i}" for i in range(20)] + [f"uniform {i}" for i in range(6)]
    looks = styles(methods)
    assert len({(look.color, look.dash, look.symbol) for look in looks.values()}) == len(methods)


def test_cost_shows_both_measures_and_leaves_out_unknown_seconds(profile) -> None:
    both = cost(profile)
    assert [list(bars.x) for bars in both.data] == [[81.3, 0.0, 242.0], list(profile.seconds)]
    assert list(both.data[1].text) == ["14.2 s", "400 ms", "38.9 s"]
    assert len(cost(replace(profile, seconds=(0.0, 0.0, 0.0))).data) == 1
