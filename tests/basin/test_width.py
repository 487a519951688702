"""Basins with known shapes: quadratics, a flat box with a wall, and a small net."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from geoquant.basin import LossRise, WidthSettings, basin_width
from geoquant.basin.directions import Cell
from geoquant.errors import DataError, ModelError, PlanError, UnknownNameError
from geoquant.evaluation import divergence, evaluate
from geoquant.plan import uniform_plan
from geoquant.quantize import quantize
from nets import blob_batches, small_batches, small_net

GRID = "int3:narrow:maxabs:tensor:fp32"
FINE = WidthSettings(randoms=3, eigenvectors=2, lanczos_steps=12, relative=1e-4, limit=64.0)


def one_layer(weights: list[float]) -> nn.Module:
    model = nn.Sequential(nn.Linear(len(weights), 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([weights]))
    return model


def at_minimum(model: nn.Module, inputs: Tensor) -> list[tuple[Tensor, Tensor]]:
    with torch.no_grad():
        return [(inputs, model(inputs))]


def test_a_quadratic_has_radius_sqrt_two_tau_over_lambda() -> None:
    """½ Σ (xᵢ·δ)²/N has Hessian XᵀX/N = diag(9, 1, 0): known eigenvalues, and a river along the third weight."""
    model = one_layer([3.0, 0.8, 0.4])
    inputs = torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]]).double() * math.sqrt(2)
    found = basin_width(model, uniform_plan(model, GRID), at_minimum(model, inputs), tolerance=0.02, settings=FINE)
    assert found.loss == "squared_error"
    assert found.largest_curvature == pytest.approx(9.0)
    for width in found.joint:
        if width.second_order is not None and width.second_order < FINE.limit:
            assert width.radius.value == pytest.approx(width.second_order, rel=1e-3)
            assert not width.wall
    sharp = [width for width in found.joint if width.kind == "eigenvector"]
    assert [width.curvature for width in sharp] == pytest.approx([9.0, 9.0, 1.0, 1.0])
    assert sharp[0].in_weights.value == pytest.approx(math.sqrt(2 * 0.02 / 9), rel=1e-3)
    # The displacement is 0.447 long: ½·9·0.2 and ½·1·0.2 exceed 0.02, along the third weight nothing rises.
    assert {width.landform for width in sharp} == {"valley"}
    assert [width.stretch for width in sharp] == pytest.approx([9.0, 9.0, 1.0, 1.0])


def river(logits: Tensor, _: Tensor) -> Tensor:
    """The toy −0.2 t + max(|n| − 0.4, 0); the samples show t and n, and its halves add up over them."""
    t, n = logits[0, 0], logits[1, 0]
    return 2 * torch.stack([-0.2 * t, (n.abs() - 0.4).clamp(min=0)])


def test_the_river_toy_has_its_river_along_t_and_its_valley_across() -> None:
    """Its Hessian is zero at the float weights; a stretch as long as a rounding sees the wall, and not the slope."""
    model = one_layer([1.5, 0.3])  # a step of 0.5, so that n goes to 0.5 on the wall
    batches = [torch.eye(2).double()]
    plan = uniform_plan(model, GRID)
    downstream = {"0.weight": torch.tensor([[2.5, 0.3]]).double()}
    found = basin_width(
        model, plan, batches, tolerance=0.04, loss=river, checkpoints=[downstream], settings=replace(FINE, limit=8.0)
    )
    ways = {width.direction: width for width in found.joint}
    across, along, against = (ways[name] for name in ("displacement", "checkpoint 1", "−checkpoint 1"))
    assert found.largest_curvature == 0
    assert (across.landform, along.landform, against.landform) == ("valley", "river", "river")
    assert across.stretch == pytest.approx((0.1 + 0.0) / 0.2**2)
    assert along.stretch == pytest.approx(0.0, abs=1e-5)
    assert along.radius.open
    assert not against.radius.open  # upstream the loss rises by its slope, which is no curvature
    wide = basin_width(model, plan, batches, tolerance=0.06, loss=river, settings=FINE)
    assert wide.displacement.landform == "basin"  # nothing within a rounding's length reaches this tolerance


def test_what_leaves_the_basin_of_a_trained_net_is_no_river(net: nn.Module) -> None:
    """Its curvature is a thousandth of the largest in any case: a share of that would call every rounding a river."""
    batches = blob_batches()
    coarse, middle, fine = (basin_width(net, uniform_plan(net, grid), batches) for grid in ("int2", "int4", "int8"))
    assert coarse.displacement.leaves
    assert coarse.displacement.landform == "valley"
    assert coarse.displacement.curvature < 0.05 * coarse.largest_curvature
    sharp = {width.landform for width in middle.joint if width.kind == "eigenvector"}
    assert (middle.displacement.landform, sharp) == ("river", {"valley"})
    assert {width.landform for width in fine.joint} == {"basin"}


def test_a_direction_without_curvature_is_a_river_and_open() -> None:
    model = one_layer([3.0, 1.4])
    batches = at_minimum(model, torch.tensor([[2.0, 0.0]]).double())
    found = basin_width(model, uniform_plan(model, GRID), batches, tolerance=0.02, settings=FINE)
    way = found.displacement  # only the second weight is off the grid, and no input reads it
    assert way.landform == "river"
    assert way.radius.open
    assert not way.wall  # nothing says that the basin ends anywhere
    assert not way.leaves
    assert way.in_steps.value == pytest.approx(FINE.limit * 0.4 / math.sqrt(2))


def test_a_flat_box_with_a_wall_is_seen_by_the_radius_and_not_by_curvature() -> None:
    """Loss 5·max(|w₂ − 1.4| − 0.3, 0): flat at the float weights, so second order promises an endless basin."""
    model = one_layer([3.0, 1.4])

    def wall(logits: Tensor, batch: Tensor) -> Tensor:
        return 5 * ((logits[:, 0] - 1.4).abs() - 0.3).clamp(min=0)

    batches = [torch.tensor([[0.0, 1.0], [0.0, 1.0]]).double()]
    found = basin_width(model, uniform_plan(model, GRID), batches, tolerance=0.05, loss=wall, settings=FINE)
    way = found.displacement  # 1.4 goes to 1, 0.4 away; the basin ends 0.31 away
    assert way.leaves
    assert way.radius.value == pytest.approx(0.31 / 0.4, rel=1e-3)
    assert way.in_weights.value == pytest.approx(0.31, rel=1e-3)
    assert way.second_order == math.inf
    assert way.wall
    assert way.rise.value == pytest.approx(0.5)
    assert found.leaving == ("0",)


def test_cells_and_steps_are_those_of_the_grid() -> None:
    model = one_layer([3.0, -1.2])
    cell = Cell.of(model, uniform_plan(model, GRID))
    assert cell.rounded["0.weight"].tolist() == [[3.0, -1.0]]
    assert cell.gaps["0.weight"].tolist() == [[1.0, 1.0]]
    assert cell.steps(cell.displacement()) == pytest.approx(0.2 / math.sqrt(2))
    moves = torch.stack([cell.random(0, draw).moves["0.weight"] for draw in range(200)])
    assert float(moves.abs().max()) <= 0.5
    assert float(moves.std()) == pytest.approx(1 / math.sqrt(12), rel=0.1)


def test_a_binary_cell_is_as_wide_as_the_gap_between_its_two_levels() -> None:
    model = one_layer([0.5, -1.5])
    cell = Cell.of(model, uniform_plan(model, "binary:maxabs:fp32"))
    gap = cell.gaps["0.weight"]
    assert torch.equal(gap, gap[:, :1].expand_as(gap))
    assert float(gap[0, 0]) == pytest.approx(2 * float(cell.rounded["0.weight"].abs().max()))


def test_joint_and_single_rises_are_those_of_the_quantized_model() -> None:
    net, batches = small_net(), small_batches()
    plan = uniform_plan(net, "int2")
    found = basin_width(net, plan, batches, settings=WidthSettings(randoms=1, eigenvectors=0))
    rounded = quantize(net, plan)
    wanted = evaluate(rounded, batches).cross_entropy.value - evaluate(net, batches).cross_entropy.value
    assert found.displacement.rise.value == pytest.approx(wanted, rel=1e-4)
    kl = basin_width(net, plan, batches, loss="kl", settings=WidthSettings(randoms=0, eigenvectors=0, layers=False))
    assert kl.displacement.rise.value == pytest.approx(divergence(net, rounded, batches).value, rel=1e-4)
    assert kl.layers == ()
    for site, width in zip(plan.inventory.sites, found.layers, strict=True):
        others = {name: "fp32" for name in plan.inventory.names if name != site.name}
        alone = quantize(net, uniform_plan(net, "int2", others))
        loss = evaluate(alone, batches).cross_entropy.value - evaluate(net, batches).cross_entropy.value
        assert width.rise.value == pytest.approx(loss, rel=1e-3, abs=1e-6)


def test_the_model_stays_as_it_is_and_the_same_seed_gives_the_same_widths() -> None:
    net, batches = small_net().train(), small_batches()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    small = WidthSettings(randoms=2, eigenvectors=1, lanczos_steps=4)
    runs = [basin_width(net, uniform_plan(net, "int4"), batches, settings=small, seed=3) for _ in range(2)]
    assert runs[0] == runs[1]
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_checkpoints_give_directions_both_ways() -> None:
    net, batches = small_net(), small_batches()
    other = {name: 1.1 * value if name.endswith("weight") else value for name, value in net.state_dict().items()}
    settings = WidthSettings(randoms=0, eigenvectors=0, layers=False)
    found = basin_width(net, uniform_plan(net, "int4"), batches, checkpoints=[other], settings=settings)
    ways = [width for width in found.joint if width.kind == "trajectory"]
    assert [way.direction for way in ways] == ["checkpoint 1", "−checkpoint 1"]
    total = math.sqrt(
        sum(float(net.get_parameter(f"{n}.weight").detach().square().sum()) for n in ("stem", "block", "head"))
    )
    assert ways[0].norm == pytest.approx(0.1 * total, rel=1e-4)
    with pytest.raises(PlanError, match="checkpoint 0 has no weight"):
        basin_width(net, uniform_plan(net, "int4"), batches, checkpoints=[{}], settings=settings)


def test_layers_left_in_float_do_not_move() -> None:
    net, batches = small_net(), small_batches()
    found = basin_width(
        net, uniform_plan(net, "int2", {"head": "fp32"}), batches, settings=WidthSettings(randoms=0, eigenvectors=0)
    )
    assert [width.layer for width in found.layers] == ["stem", "block"]
    with pytest.raises(PlanError, match="nothing to diagnose"):
        basin_width(net, uniform_plan(net, "fp16"), batches)


def test_errors_name_what_is_wrong() -> None:
    net, batches = small_net(), small_batches()
    with pytest.raises(UnknownNameError, match="cross_entropy"):
        LossRise(net, batches, "crossentropy")
    with pytest.raises(DataError, match="targets"):
        LossRise(net, [batches[0][0]], "cross_entropy")
    with pytest.raises(DataError, match="one each is needed"):
        LossRise(net, batches, lambda logits, batch: logits)
    with torch.no_grad():
        net.head.bias.fill_(math.nan)
    with pytest.raises(ModelError, match="not finite"):
        LossRise(net, batches)


def test_without_labels_the_loss_is_the_divergence() -> None:
    net = small_net()
    rise = LossRise(net, [inputs for inputs, _ in small_batches()])
    assert rise.name == "kl"
    assert rise.at({}).value == pytest.approx(0.0, abs=1e-7)


def test_single_layers_are_bracketed_more_coarsely_and_leave_all_the_same(net: nn.Module) -> None:
    fine, coarse = (
        basin_width(
            net,
            uniform_plan(net, "int2"),
            blob_batches(4),
            settings=WidthSettings(randoms=0, eigenvectors=0, layer_relative=share),
        )
        for share in (0.05, 0.3)
    )
    assert coarse.leaving == fine.leaving != ()
    assert [width.rise for width in coarse.layers] == [width.rise for width in fine.layers]
    spent = [sum(width.radius.evaluations for width in found.layers) for found in (coarse, fine)]
    assert spent[0] < spent[1]
    for one, other in zip(coarse.layers, fine.layers, strict=True):
        assert one.radius.value == pytest.approx(other.radius.value, rel=0.2)
    assert coarse.joint == fine.joint


def tokens(windows: int, length: int, scored: int) -> list[tuple[Tensor, Tensor]]:
    """One batch of windows whose first `scored` tokens count."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(windows, length, 6, generator=generator)
    targets = torch.randint(0, 5, (windows, length), generator=generator)
    targets[:, scored:] = -100
    return [(inputs, targets)]


@pytest.mark.parametrize(
    ("scored", "samples", "predictions", "wanted"),
    [(1, 100, 30, 30), (1, 40, 90, 40), (8, 64, 320, 40), (8, 64, 64, 16), (8, 9, 64, 9), (8, 500, 10_000, 64)],
)
def test_samples_of_many_predictions_need_fewer(scored: int, samples: int, predictions: int, wanted: int) -> None:
    rise = LossRise(nn.Linear(6, 5), tokens(64, 8, scored))
    assert rise.per_sample == scored
    assert rise.enough(samples, predictions) == wanted


def test_windows_of_text_are_not_all_looked_at() -> None:
    model, settings = nn.Linear(6, 5), WidthSettings(randoms=0, eigenvectors=0, predictions=160)
    plan = uniform_plan(model, "int3")
    cut = basin_width(model, plan, tokens(64, 8, 8), settings=settings)
    assert (cut.samples, cut.layer_samples) == (64, 20)
    whole = basin_width(model, plan, tokens(64, 8, 1), settings=settings)
    assert whole.layer_samples == 64
