"""Constants of the bound, measured on a net that is the river toy, and on one that is not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from geoquant.basin import measure_landscape
from geoquant.errors import GeoquantError
from geoquant.plan import uniform_plan
from nets import blob_batches

GRID = "int3:narrow:maxabs:tensor:fp32"


def toy(logits: Tensor, batch: Tensor) -> Tensor:
    """The wall of the toy, on a grid of step 1: flat within 0.58 of 0.28, slope 1 beyond; 0 is inside, 1 outside."""
    return ((logits[:, 0] - 0.28).abs() - 0.58).clamp(min=0)


def wall(weight: float) -> tuple[nn.Module, list[Tensor]]:
    """A weight n beside one that fixes the scale and that no input reads."""
    model = nn.Sequential(nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, weight]]))
    return model, [torch.tensor([[0.0, 1.0]] * 4).double()]


def test_the_toy_is_measured_exactly_and_its_bound_holds() -> None:
    """With n = w − 0.28 at 0.43: nearest rounding takes 1 (n = 0.72), 0 (n = −0.28) lies inside."""
    model, batches = wall(0.71)
    centre = {"0.weight": torch.tensor([[3.0, 0.28]])}
    river = {"0.weight": torch.tensor([[1.0, 0.0]])}
    found = measure_landscape(
        model,
        uniform_plan(model, GRID),
        batches,
        loss=toy,
        tolerance=1e-6,
        rate=0.02,
        steps=15,
        centre=centre,
        river=river,
    )
    assert found.r == pytest.approx(0.58, rel=0.05)
    assert found.s == pytest.approx(1.0)
    assert pytest.approx(1.0) == found.G
    assert found.rho == pytest.approx(0.49)
    assert found.distance == pytest.approx(0.43)
    assert found.entry == 11  # 0.71 − 11 · 0.02 is the first below the middle between the codewords
    assert found.refusal == ""
    assert found.bound is not None
    assert 11 <= found.bound <= 100


def test_a_river_through_the_float_weights_breaks_the_conditions_and_says_so() -> None:
    model, batches = wall(0.71)
    river = {"0.weight": torch.tensor([[1.0, 0.0]])}
    found = measure_landscape(
        model, uniform_plan(model, GRID), batches, loss=toy, tolerance=1e-6, rate=0.01, steps=3, river=river
    )
    assert found.distance == 0.0
    assert found.bound is None
    assert "does not exceed" in found.refusal
    assert "no bound" in str(found)


def test_without_a_codeword_outside_there_is_nothing_to_enter() -> None:
    model, batches = wall(0.1)
    found = measure_landscape(model, uniform_plan(model, GRID), batches, loss=toy, tolerance=1e-6, steps=2)
    assert found.entry == 0
    assert math.isnan(found.s)
    assert "no deployed point" in found.refusal


def test_a_real_net_is_measured_and_left_alone(net: nn.Module) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = measure_landscape(net, uniform_plan(net, "int2:tensor"), blob_batches(2), tolerance=0.01, steps=4)
    assert len(found.rises) == 4
    assert found.rho > 0
    assert abs(found.s) <= found.G
    assert found.bound is None
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_divergence_from_float_has_a_gradient_too(net: nn.Module) -> None:
    data = [inputs for inputs, _ in blob_batches(1)]
    found = measure_landscape(net, uniform_plan(net, "int2:tensor"), data, tolerance=0.001, steps=2)
    assert found.G > 0


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"rate": 0.0}, {"rate": math.nan}])
def test_walks_that_lead_nowhere(net: nn.Module, wrong: dict[str, float]) -> None:
    with pytest.raises(GeoquantError, match="lead nowhere"):
        measure_landscape(net, uniform_plan(net, "int4"), blob_batches(1), **wrong)
