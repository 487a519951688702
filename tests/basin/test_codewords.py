"""The walk between neighbours never leaves the grid cell; the search deploys what it says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from geoquant.basin import LossRise, WalkSettings
from geoquant.basin.codewords import CodewordSearch
from geoquant.basin.directions import Cell
from geoquant.grids import Grid, QuantizedMatrix, Scales
from geoquant.models import get_weight
from geoquant.plan import Plan, uniform_plan
from geoquant.quantize import NetworkTuning, quantize, quantized_state
from geoquant.quantize.learning import LearnedMatrix
from nets import blob_batches

GRID = Grid.parse("int3:narrow:maxabs:fp32")
ONE = Scales(torch.ones(1, 1))


@pytest.fixture
def plan(net: nn.Module) -> Plan:
    return uniform_plan(net, "int3:narrow:maxabs:fp32")  # nothing is clipped


def test_a_walk_between_neighbours_stays_in_the_cell(net: nn.Module, plan: Plan) -> None:
    cell, data = Cell.of(net, plan), blob_batches(4)
    model = quantize(net, plan)
    tuning = NetworkTuning(40, 0.3, 0.0, 0.0, neighbours=True)
    tuning(net, model, plan.inventory.sites, quantized_state(model).matrices, data)
    furthest = 0.0
    for site in cell.sites:
        move = (get_weight(model, site) - cell.origin[site.parameter]).abs() / cell.gaps[site.parameter]
        furthest = max(furthest, float(move.max()))
    assert 0.6 < furthest <= 1.0001  # some weights went to the farther neighbour, none beyond


@pytest.mark.parametrize(("neighbours", "wanted"), [(True, [1.0, 2.0, -2.0]), (False, [3.0, 3.0, 3.0])])
def test_only_free_codes_can_be_pushed_beyond_the_neighbours(neighbours: bool, wanted: list[float]) -> None:
    matrix = torch.tensor([[0.2, 1.9, -2.6]])
    scaled = QuantizedMatrix(GRID, GRID.encode(matrix, ONE), ONE)
    learned = LearnedMatrix(scaled, matrix, neighbours)
    with torch.no_grad():
        learned.x.add_(9.0)
    learned.clamp_()
    assert learned.finish().dequantize().tolist() == [wanted]


def test_candidates_come_with_their_weights_and_distances(net: nn.Module, plan: Plan) -> None:
    cell, data = Cell.of(net, plan), blob_batches(4)
    judge, walks = LossRise(net, data[1::2]), WalkSettings(5, 5, exhaustive=True)
    found = CodewordSearch(net, plan, data[::2], judge, 0.05, walks).run()
    names = [each.name for each, _ in found]
    assert names == ["nearest", "gptq", "descent, norms corrected", "neighbours", "short training"]
    assert [each.weights_only for each, _ in found] == [True, True, False, True, False]
    for each, point in found:
        assert each.steps == pytest.approx(cell.steps(cell.towards(point)))
    for name, weight in found[0][1].items():
        assert torch.equal(weight, cell.rounded[name])


def test_nothing_dearer_is_tried_once_a_codeword_is_clearly_inside(net: nn.Module) -> None:
    data = blob_batches(4)

    def tried(grid: str, tolerance: float) -> list[str]:
        judge = LossRise(net, data[1::2])
        search = CodewordSearch(net, uniform_plan(net, grid), data[::2], judge, tolerance, WalkSettings(2, 2))
        return [each.name for each, _ in search.run()]

    assert tried("int8", 0.05) == ["nearest"]
    assert tried("binary:tensor", 1e-4) == [
        "nearest",
        "gptq",
        "descent, norms corrected",
        "neighbours",
        "short training",
    ]
    assert tried("binary:tensor", 1e9) == ["nearest"]


@pytest.mark.parametrize("limit", [{"predictions": 24}, {"batch": 24}])
def test_a_step_of_a_walk_takes_at_most_so_many_samples(
    net: nn.Module, monkeypatch: pytest.MonkeyPatch, limit: dict[str, int]
) -> None:
    sizes: list[list[int]] = []

    def note(_: NetworkTuning, *rest: Any) -> None:
        sizes.append([len(inputs) for inputs, _ in rest[4]])

    monkeypatch.setattr(NetworkTuning, "__call__", note)
    data = blob_batches(2)
    walks = WalkSettings(5, 5, exhaustive=True, **limit)
    CodewordSearch(net, uniform_plan(net, "int3"), data, LossRise(net, data), 0.05, walks).run()
    assert sizes == [[24, 24, 16] * 2] * 2
