"""Latency tables: every site at every grid, alike layers timed once, and a file that a budget reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import geoquant as gq
from geoquant.errors import ExportError
from geoquant.export import measure_latency, timing
from geoquant.models import inference
from geoquant.plan import LatencyTable


class Twins(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


def test_every_site_and_grid_is_timed_and_twins_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def fixed(session: object, fed: dict[str, object], repeats: int) -> float:
        calls.append(repeats)
        return [5.0, 3.0, 2.0, 1.0, 0.5, 0.2, 20.0][len(calls) - 1]  # two kinds of layer, then the model

    monkeypatch.setattr(timing, "time_session", fixed)
    net = Twins().eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    table = measure_latency(net, torch.randn(2, 24), ("int8", "int4:group8"), repeats=7)
    assert len(calls) == 7  # fp32 and two grids of two kinds of layer, and the model
    assert set(calls) == {7}
    grids = ("fp32", "int8", "int4:group8")
    assert [table.milliseconds("first", grid) for grid in grids] == pytest.approx([5.0, 3.0, 2.0])
    assert [table.milliseconds("head", grid) for grid in grids] == pytest.approx([1.0, 0.5, 0.2])
    assert table.milliseconds("first", "int8") == table.milliseconds("second", "int8")
    assert table.base == pytest.approx(20.0 - (5.0 + 5.0 + 1.0))
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert LatencyTable.load(table.save(tmp_path / "times.json")) == table
    budget = gq.Budget(latency=15.0, latency_table=table)
    profile = gq.profile(net, [torch.randn(8, 24)], grids=("int8", "int4:group8"), predictors=("weight_error",))
    assert gq.allocate(profile, budget).latency <= 15.0


def test_real_times_are_positive() -> None:
    table = measure_latency(nn.Sequential(nn.Linear(16, 4)).eval(), torch.randn(1, 16), ("int4",), repeats=3)
    assert all(time >= 0 for _, _, time in table.entries)
    assert table.milliseconds("0", "fp32") > 0


def test_a_layer_that_is_never_called_is_named() -> None:
    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.layer.weight.T

    net = Reading().eval()
    with inference(net):
        net(torch.randn(1, 4))
    with pytest.raises(ExportError, match="'layer' cannot be timed"):
        measure_latency(net, torch.randn(1, 4))
