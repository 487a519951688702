"""Every registered transform keeps the laws on every kind of net, and does something on those it is for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from geoquant.errors import ModelError, PlanError, UnknownNameError
from geoquant.plan import uniform_plan
from geoquant.transforms import TRANSFORMS, TransformContext, TransformReport, transform, transform_
from transforms.contract import check_transform
from transforms.models import CASES, case

FINDS = {
    "absorb": {"llama in torch", "llama", "llama, eager", "gpt2", "bert", "gemma"},
    "awq": set(CASES),
    "equalize": {"llama in torch", "llama", "llama, eager", "conv net", "gpt2", "bert", "gemma"},
    "hadamard": set(CASES) - {"conv net"},
    "smoothquant": set(CASES),
}


@pytest.mark.parametrize("net", CASES)
@pytest.mark.parametrize("name", TRANSFORMS.names())
def test_laws(name: str, net: str) -> None:
    exact = CASES[net][2]
    model, batch = case(net, torch.float64 if exact else torch.float32)
    report = check_transform(name, model, batch, 1e-10 if exact else 1e-5)
    assert bool(report.applied) == (net in FINDS[name]), str(report)


@pytest.mark.parametrize("name", TRANSFORMS.names())
def test_single_precision(name: str) -> None:
    model, batch = case("llama in torch", torch.float32)
    check_transform(name, model, batch, 1e-5)


def test_names_and_what_they_need() -> None:
    model, batch = case("conv net")
    with pytest.raises(UnknownNameError, match="'absorb'"):
        transform(model, "absorbb", [batch])
    with pytest.raises(PlanError, match="pass calibration batches"):
        transform(model, "absorb")
    with pytest.raises(PlanError, match="pass plan="):
        transform(model, "awq", [batch])
    with pytest.raises(PlanError, match="another model"):
        transform(model, "awq", [batch], uniform_plan(nn.Linear(2, 2), "int4"))
    assert transform_(model, [], None) == ()


class _Wrong:
    """Changes the function."""

    def __call__(self, model: nn.Module, context: TransformContext) -> TransformReport:
        with torch.no_grad():
            next(iter(model.parameters())).mul_(1.1)
        return TransformReport("wrong", (), ())


def test_a_transform_that_changes_the_function_is_undone() -> None:
    model, batch = case("conv net")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ModelError, match="other outputs"):
        transform_(model, ["equalize", _Wrong()], [batch])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
