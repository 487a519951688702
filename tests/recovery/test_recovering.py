"""What comes out of a recovery: an ordinary quantized model, better than it was, on every kind of grid."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from tests.nets import small_net
from torch import Tensor, nn

import geoquant as gq
from geoquant.errors import DataError, LayerNameError, PlanError, UnknownNameError
from geoquant.quantize import quantized_state
from geoquant.recovery import RecoveryError, recover_

GRIDS = (
    "int2",
    "int3:tensor:maxabs",
    "int2:affine",
    "int2:group16",
    "int3:mse-signed",
    "int4:narrow:bf16",
    "ternary",
    "binary",
    "fp4_e2m1:e8m0",
)


def divergence(net: nn.Module, model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> float:
    return gq.divergence(net, model, batches).value


@pytest.mark.parametrize(("grid", "method"), [*((grid, "lsq") for grid in GRIDS), ("int2", "ste"), ("binary", "ste")])
def test_every_grid_recovers_and_is_saved_to_the_bit(grid: str, method: str, net, batches, tmp_path) -> None:
    plan = gq.uniform_plan(net, grid, activations="int4:affine")
    model = gq.quantize_(copy.deepcopy(net), plan, batches, effort="fast", norms="none")
    before = divergence(net, model, batches)
    result = recover_(model, plan, batches, teacher=net, method=method, epochs=3, validation=batches)
    assert result.start is not None
    assert result.best is not None
    assert result.best < 0.95 * result.start
    assert result.best < before
    assert divergence(net, model, batches) == pytest.approx(result.best, rel=1e-5)  # it judged what is deployed
    path = gq.save(model, plan, tmp_path)
    assert path.stat().st_size == plan.bytes
    loaded = gq.load(tmp_path, small_net(seed=3))
    inputs = batches[0][0]
    assert torch.equal(loaded(inputs), model(inputs))
    assert type(model.stem) is nn.Conv2d  # nothing of the training is left
    assert list(model.state_dict()) == list(net.state_dict())


def test_a_float_model_is_quantized_first_and_teaches_itself(net, batches) -> None:
    plan = gq.uniform_plan(net, "int2")
    model = copy.deepcopy(net)
    recover_(model, plan, batches, epochs=8)
    rounded = gq.quantize_(copy.deepcopy(net), plan, batches)
    assert divergence(net, model, batches) < divergence(net, rounded, batches)
    assert quantized_state(model).plan.names == plan.names


def test_only_the_named_layers_change_their_codes(net, batches) -> None:
    plan = gq.uniform_plan(net, "int2")
    model = gq.quantize_(copy.deepcopy(net), plan, batches)
    before = quantized_state(model).matrices
    recover_(model, plan, batches, teacher=net, layers=["block"], epochs=5, rate=1e-2, free_rate=0)
    after = quantized_state(model).matrices
    changed = [name for name in before if not torch.equal(before[name].codes, after[name].codes)]
    assert changed == ["block.weight"]


def test_without_better_validation_the_model_stays_as_it_was(net, batches) -> None:
    plan = gq.uniform_plan(net, "int3")
    model = gq.quantize_(copy.deepcopy(net), plan, batches)
    before = copy.deepcopy(model)
    result = recover_(model, plan, batches, teacher=net, steps=8, rate=10.0, free_rate=3.0, validation=batches)
    assert result.steps == 0
    assert result.best == result.start
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.state_dict().values(), strict=True)
    )


def test_patience_ends_a_run_that_gets_worse(net, batches) -> None:
    plan = gq.uniform_plan(net, "int3")
    result = recover_(
        copy.deepcopy(net), plan, batches, epochs=50, rate=10.0, free_rate=3.0, validation=batches, patience=2
    )
    assert len(result.losses) == 2 * len(batches)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"plan": "int4"}, PlanError),
        ({"batches": []}, DataError),
        ({"batches": [torch.zeros(4, 1, 8, 8)]}, DataError),
        ({"layers": ["nothing"]}, LayerNameError),
        ({"method": "magic"}, UnknownNameError),
        ({"epochs": 1, "steps": 1}, RecoveryError),
        ({"labels": 2.0}, RecoveryError),
    ],
)
def test_what_is_refused_leaves_the_model_alone(change, error, net, batches) -> None:
    plan = gq.uniform_plan(net, "int3")
    model = gq.quantize_(copy.deepcopy(net), plan, batches)
    before = copy.deepcopy(model.state_dict())
    chosen = {"steps": 2, **change} if "epochs" not in change else dict(change)
    plan = gq.uniform_plan(net, chosen.pop("plan")) if "plan" in chosen else plan
    with pytest.raises(error):
        recover_(model, plan, chosen.pop("batches", batches), **chosen)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.values(), strict=True))
    quantized_state(model)


def test_the_same_seed_gives_the_same_model(net, batches) -> None:
    plan = gq.uniform_plan(net, "int2")
    models = []
    for seed in (5, 5, 6):
        torch.manual_seed(len(models))  # what the caller drew before must not matter
        model = copy.deepcopy(net)
        recover_(model, plan, batches, epochs=2, seed=seed)
        models.append(model.state_dict())
    same = [all(torch.equal(a, b) for a, b in zip(models[0].values(), m.values(), strict=True)) for m in models[1:]]
    assert same == [True, False]


def test_tied_weights_stay_tied(batches) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.relu(self.first(x.flatten(1))))[:, :5]

    torch.manual_seed(0)
    net = Tied()
    plan = gq.uniform_plan(net, "int2")
    model = copy.deepcopy(net)
    before = divergence(net, gq.quantize_(copy.deepcopy(net), plan, batches), batches)
    recover_(model, plan, batches, epochs=8)
    assert model.first.weight is model.second.weight
    assert divergence(net, model, batches) < before


def test_half_precision_products_recover_too_and_leave_everything_in_float32(net, batches) -> None:
    """Training in bf16 ends elsewhere, so it is used; what is kept and what judges is float32."""
    plan = gq.uniform_plan(net, "int2", activations="int4:affine")
    begun = gq.quantize_(copy.deepcopy(net), plan, batches)
    models = {}
    for arithmetic in ("float32", "bf16"):
        models[arithmetic] = copy.deepcopy(begun)
        result = recover_(
            models[arithmetic], plan, batches, teacher=net, epochs=3, validation=batches, arithmetic=arithmetic
        )
        assert result.best == pytest.approx(divergence(net, models[arithmetic], batches), rel=1e-4)
        assert result.best < 0.95 * result.start
    kinds = {tensor.dtype for tensor in models["bf16"].state_dict().values() if tensor.is_floating_point()}
    assert kinds == {torch.float32}
    inputs = batches[0][0]
    assert models["bf16"](inputs).dtype == torch.float32
    assert not torch.equal(models["bf16"](inputs), models["float32"](inputs))


@pytest.mark.parametrize(("units", "warned"), [({}, 1), ({"avx512_bf16": True}, 0), ({"amx_bf16": True}, 0)])
def test_bf16_on_a_processor_without_units_for_it_warns(net, batches, monkeypatch, units, warned) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64", **units})
    plan = gq.uniform_plan(net, "int2")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", UserWarning)
        recover_(gq.quantize_(copy.deepcopy(net), plan, batches), plan, batches, steps=1, arithmetic="bf16")
    assert sum("no units for bf16" in str(each.message) for each in seen) == warned


def test_an_unknown_arithmetic_is_named(net, batches) -> None:
    with pytest.raises(UnknownNameError, match="no arithmetic 'bf61'"):
        recover_(copy.deepcopy(net), gq.uniform_plan(net, "int2"), batches, arithmetic="bf61")
