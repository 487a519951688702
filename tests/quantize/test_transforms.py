"""Transforms as a part of quantizing: before the walk, on a copy, and stored with everything else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import geoquant as gq
from geoquant.errors import PlanError, UnknownNameError
from geoquant.models import inference
from geoquant.plan import uniform_plan
from geoquant.quantize import quantize, quantized_state
from geoquant.transforms import SmoothQuant, transform
from nets import small_batches, small_net

BATCHES = small_batches(2, 8)


class Normed(nn.Sequential):
    """A norm with uneven scales between two layers."""

    def __init__(self) -> None:
        layers = (nn.Linear(64, 16), nn.LayerNorm(16), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 5))
        super().__init__(nn.Flatten(), *layers)
        torch.manual_seed(0)
        with torch.no_grad():
            self[2].weight.copy_(10 ** torch.linspace(-1.5, 1.5, 16))
            self[2].bias.normal_()


def logits(model: nn.Module) -> torch.Tensor:
    with inference(model):
        return torch.cat([model(inputs) for inputs, _ in BATCHES])


@pytest.mark.parametrize("settings", [{"rounding": "gptq"}, {"rounding": "nearest", "norms": "none"}])
def test_the_same_as_transforming_first(settings: dict[str, str]) -> None:
    model = Normed().eval()
    plan = uniform_plan(model, "int3")
    done = quantize(model, plan, BATCHES, transforms=("absorb", "awq"), **settings)
    by_hand = quantize(transform(model, ("absorb", "awq"), BATCHES, plan), plan, BATCHES, **settings)
    assert torch.equal(logits(done), logits(by_hand))
    assert not torch.equal(logits(done), logits(quantize(model, plan, BATCHES, **settings)))
    assert [report.name for report in quantized_state(done).transforms] == ["absorb", "awq"]
    latents = quantized_state(done).latents["3.weight"]
    assert not torch.equal(latents, model[3].weight), "what the codes stand for are the transformed weights"


@pytest.mark.parametrize("transforms", [("absorb",), "awq", (SmoothQuant(0.7),), ("equalize", "awq")])
def test_stored_and_loaded_to_the_bit(transforms: object, tmp_path: Path) -> None:
    model = Normed().eval()
    plan = uniform_plan(model, "int4", activations="int8:affine")
    gq.quantize_(model, plan, BATCHES, transforms=transforms)
    path = gq.save(model, plan, tmp_path)
    assert path.stat().st_size == plan.bytes
    assert torch.equal(logits(gq.load(tmp_path, Normed())), logits(model))


def test_uneven_norms_round_better_after_awq() -> None:
    model = Normed().eval()
    plan, wanted = uniform_plan(model, "fp32", {"3": "int3"}), logits(model)
    plain, scaled = (
        quantize(model, plan, BATCHES, rounding="nearest", norms="none", transforms=names) for names in ((), "awq")
    )
    errors = [float((logits(each) - wanted).square().mean()) for each in (plain, scaled)]
    assert errors[1] < errors[0] / 1.5


class _Late:
    """Changes the model it is given and then fails."""

    def __call__(self, model: nn.Module, context: object) -> object:
        next(iter(model.parameters())).data.zero_()
        raise PlanError("too late")


@pytest.mark.parametrize(
    ("names", "batches", "error"),
    [("awg", BATCHES, UnknownNameError), ("awq", None, PlanError), (("equalize", _Late()), BATCHES, PlanError)],
)
def test_errors_leave_the_model_alone(names: object, batches: object, error: type[Exception]) -> None:
    model = small_net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(error):
        gq.quantize_(model, uniform_plan(model, "int4"), batches, transforms=names)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
