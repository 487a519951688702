"""What entered a layer, and what would enter it after its inputs are divided."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from geoquant.transforms.scaling import column_energy, column_reach, inputs_of, row_reach, scale_inputs_, scale_outputs_
from geoquant.transforms.statistics import measure_inputs

LAYERS = {
    "linear": (nn.Linear(6, 4), (5, 6)),
    "grouped convolution": (nn.Conv2d(6, 4, 3, groups=2), (2, 6, 5, 5)),
    "convolution": (nn.Conv1d(6, 3, 2, padding=1), (2, 6, 7)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_dividing_the_inputs_is_measuring_divided_ones(name: str) -> None:
    layer, shape = LAYERS[name]
    model, batch = nn.Sequential(layer), torch.randn(shape)
    factor = torch.rand(6).double() + 0.5
    spread = factor.float() if name == "linear" else factor.float().view(6, *[1] * (len(shape) - 2))
    found, wanted = (
        measure_inputs(model, ["0"], [each], moments=True, values=True)["0"] for each in (batch, batch / spread)
    )
    found = found.divided(factor)
    for own in ("largest", "mean", "moment", "values"):
        torch.testing.assert_close(getattr(found, own), getattr(wanted, own), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_scaled_layers_give_scaled_outputs(name: str) -> None:
    layer, shape = LAYERS[name]
    layer, batch = layer.double(), torch.randn(shape).double()
    wanted = layer(batch)
    assert inputs_of(layer) == 6
    factor = torch.rand(6).double() + 0.5
    before = column_reach(layer), column_energy(layer)
    scale_inputs_(layer, factor)
    torch.testing.assert_close(column_reach(layer), before[0] * factor)
    torch.testing.assert_close(column_energy(layer), before[1] * factor**2)
    axes = [1] * (0 if name == "linear" else len(shape) - 2)
    torch.testing.assert_close(layer(batch / factor.view(-1, *axes)), wanted)
    own = torch.rand(wanted.shape[1]).double() + 0.5
    rows = row_reach(layer)
    scale_outputs_(layer, own)
    torch.testing.assert_close(row_reach(layer), rows * own)
    torch.testing.assert_close(layer(batch / factor.view(-1, *axes)), wanted * own.view(-1, *axes))
    layer.float()
