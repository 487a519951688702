"""Damage of activations, one at a time: that of the net deployed so; static and dynamic grids, layers and operands."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import geoquant as gq
from geoquant import storage
from geoquant.errors import GridError, LayerNameError, PlanError
from geoquant.evaluation import divergence
from geoquant.grids import ActivationGrid
from geoquant.models import take_inventory
from geoquant.plan import uniform_plan
from geoquant.quantize import quantize
from geoquant.sensitivity import ActivationTable, Profile, activation_cost, find_activations, measure_activations
from nets import small_batches, small_net

GRIDS = ("int2:affine", "int4:affine:minmax", "int3:affine:dynamic", "int3:token")


def measured(model: nn.Module, batches: list, names: tuple[str, ...]) -> ActivationTable:
    return measure_activations(model, names, [ActivationGrid.parse(grid) for grid in GRIDS], batches)


def check_against_deployment(model: nn.Module, batches: list, names: tuple[str, ...]) -> ActivationTable:
    """Every entry is the divergence of the net whose weights are float and which rounds this activation alone."""
    before = copy.deepcopy(model.state_dict())
    table = measured(model, batches, names)
    for row, name in enumerate(names):
        for column, grid in enumerate(GRIDS):
            plan = uniform_plan(model, "fp32", activations={name: grid})
            found = divergence(model, quantize(model, plan, batches, norms="none"), batches)
            assert table.damages.row(name)[column] == pytest.approx(found.value, rel=1e-4, abs=1e-9), (name, grid)
            assert table.damages.stderr[row][column] == pytest.approx(found.stderr, rel=1e-3, abs=1e-9)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    return table


def test_layers_and_operands_of_a_residual_net() -> None:
    model, batches = small_net(), small_batches()
    names = find_activations(model, take_inventory(model), ["re:.*"])
    assert names == ("stem", "block", "head", "add:0", "add:1")
    table = check_against_deployment(model, batches, names)
    assert table.elements == (64, 512, 8, 512, 512)
    assert table.damages.samples == 48
    expected = activation_cost(model, names, len(GRIDS), batches[0])
    assert table.damages.cost == pytest.approx(expected, rel=1e-6)
    assert expected < 2 + len(GRIDS) * len(names), "what comes before a site is not run again"


class Attention(nn.Module):
    """A norm before the first weight, products, a softmax module: what starts inside a block and ends outside."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.soft = nn.LayerNorm(6), nn.Softmax(-1)
        self.q, self.k = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x + x.mean(1, keepdim=True))
        return x + self.soft(self.q(x) @ self.k(x).transpose(1, 2)) @ x


def test_operations_before_and_after_the_weights_of_their_block() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), Attention(), Attention(), nn.Flatten(), nn.Linear(30, 3)).eval()
    batches = [3 * torch.randn(8, 5, 6) for _ in range(2)]
    names = ("1.k", "1.add:0", "2.add:1", "2.soft:0", "2.matmul_1:0", "4")
    assert set(names) < set(find_activations(model, take_inventory(model), ["re:.*"]))
    check_against_deployment(model, batches, names)


def test_attention_of_torch_and_tied_weights() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn, self.a, self.b = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 8), nn.Linear(8, 8)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(self.attn(x, x, x, need_weights=False)[0].mean(1))))

    torch.manual_seed(0)
    model, batches = Net().eval(), [torch.randn(8, 5, 8) for _ in range(2)]
    names = find_activations(model, take_inventory(model))
    assert names == ("attn.in_proj", "a"), "the output projection is multiplied inside one operation"
    assert check_against_deployment(model, batches, names).elements == (40, 16)


def test_what_cannot_be_measured_is_said() -> None:
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    model = Skips()
    with pytest.raises(PlanError, match="brings anything to 'idle'"):
        gq.profile(model, [torch.randn(8, 4)], grids=["int4"], predictors=["weight_error"], activations=["int4"])
    with pytest.raises(PlanError, match="names no input that can be quantized"):
        find_activations(nn.Sequential(nn.Embedding(3, 2)), take_inventory(nn.Sequential(nn.Embedding(3, 2))))
    with pytest.raises(LayerNameError):
        find_activations(model, take_inventory(model), ["nowhere"])
    with pytest.raises(GridError):
        gq.profile(model, [torch.randn(8, 4)], activations=["int4:channel"])


def test_the_profile_keeps_it_and_older_files_have_none(tmp_path: Path) -> None:
    options = {"grids": ["int4"], "predictors": ["weight_error"]}
    found = gq.profile(small_net(), small_batches(), activations=["int4:affine", "int4:affine:mse"], **options)
    assert found.activations is not None
    assert (found.activations.sites, found.activations.grids) == (("stem", "block", "head"), ("int4:affine",))
    assert found.cost == found.tables[0].cost + found.activations.damages.cost
    assert np.isfinite(found.activations.damages.damage).all()
    path = found.save(tmp_path)
    assert Profile.load(path) == found
    content = json.loads(path.read_text())["content"]
    del content["activations"]
    storage.write_document(path, "profile", 3, content)
    assert Profile.load(path).activations is None
    assert gq.profile(small_net(), small_batches(), **options).activations is None
