"""Laws of every transform; a newcomer registers itself and inherits them all."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from geoquant.models import inference, model_fingerprint, predict, take_inventory
from geoquant.plan import uniform_plan
from geoquant.transforms import TransformReport, transform, transformed


def check_transform(name: str, model: nn.Module, batch: Any, tolerance: float) -> TransformReport:
    """Hold a transform to its laws on one model; return what it did."""
    plan = uniform_plan(model, "int3:maxabs", activations="int4:minmax")
    before, wanted = copy.deepcopy(model.state_dict()), _outputs(model, batch)

    torch.manual_seed(1)
    done, (report,) = transformed(model, name, [batch], plan, seed=4)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items()), "the model changed"
    plan.inventory.check_same_layout(take_inventory(done))
    assert [type(module) for module in done.modules()] == [type(module) for module in model.modules()]
    assert _distance(_outputs(done, batch), wanted) <= tolerance, "another function"

    torch.manual_seed(2)
    twice = transform(done, name, [batch], plan, seed=4)
    assert _distance(_outputs(twice, batch), wanted) <= 2 * tolerance, "a second time does harm"
    again = transform(model, name, [batch], plan, seed=4)
    assert model_fingerprint(again) == model_fingerprint(done), "the seed given must be the only source of chance"

    assert report.name == name
    _check_named(report, model, done)
    return report


def _check_named(report: TransformReport, model: nn.Module, done: nn.Module) -> None:
    named = {each.source for each in report.applied} | {each for one in report.applied for each in one.targets}
    for path, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        other = dict(done.get_submodule(path).named_parameters(recurse=False))
        changed = any(not torch.equal(own[key], other[key]) for key in own)
        assert not changed or path in named, f"'{path}' changed in silence"
    assert all(each.reason for each in report.skipped), "skipped without a reason"


def _outputs(model: nn.Module, batch: Any) -> torch.Tensor:
    with inference(model):
        return predict(model, batch).double()


def _distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())
