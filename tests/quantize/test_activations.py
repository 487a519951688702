"""Activations on their grids: levels, scales of the quantized prefix, hooks that follow copies, gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import geoquant as gq
from geoquant.errors import PlanError
from geoquant.grids import ActivationGrid
from geoquant.models import inference
from geoquant.plan import uniform_plan
from geoquant.quantize import quantize, quantized_state
from nets import small_batches, small_net


def seen_by(model: nn.Module, name: str, batch: object) -> Tensor:
    """Return what the layer's own forward receives, after all hooks."""
    found = []
    layer = model.get_submodule(name)
    handle = layer.register_forward_pre_hook(lambda _, args: found.append(args[0].detach().clone()))
    with inference(model):
        model(batch)
    handle.remove()
    return found[0]


def test_every_layer_sees_few_levels_and_scales_are_of_the_quantized_prefix() -> None:
    model, batches = small_net(), small_batches(4, 32)
    done = quantize(model, uniform_plan(model, "int2", activations="int4:affine:minmax"), batches, norms="none")
    inputs = torch.cat([batch for batch, _ in batches])
    for name in ("stem", "block", "head"):
        assert len(seen_by(done, name, inputs).unique()) <= 16
    scale = quantized_state(done).scales["block"]
    prefix, float_prefix = (torch.relu(net.norm(net.stem(inputs))).detach() for net in (done, model))
    grid = ActivationGrid.parse("int4:affine:minmax")
    assert scale == grid.cover(float(prefix.min()), float(prefix.max()))
    assert scale != grid.cover(float(float_prefix.min()), float(float_prefix.max())), "the twin: the float prefix"


def test_rounding_sees_quantized_inputs() -> None:
    """GPTQ of the second layer with its inputs on four levels differs from that with float inputs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8)).eval()
    batches = [torch.randn(64, 12) for _ in range(3)]
    with_inputs = quantize(model, uniform_plan(model, "int3", activations={"2": "int2:affine"}), batches)
    without = quantize(model, uniform_plan(model, "int3"), batches)
    assert torch.equal(with_inputs[0].weight, without[0].weight)
    assert not torch.equal(with_inputs[2].weight, without[2].weight)


def test_the_more_bits_the_nearer_to_float() -> None:
    model, batches = small_net(), small_batches(4, 32)
    logits = {}
    for bits in (2, 4, 8):
        done = quantize(model, uniform_plan(model, "fp32", activations=f"int{bits}:affine"), batches, norms="none")
        with inference(done), inference(model):
            logits[bits] = float((done(batches[0][0]) - model(batches[0][0])).square().mean())
    assert logits[8] < logits[4] / 20 < logits[2] / 100
    assert logits[8] > 0


def test_the_given_model_of_quantize_has_no_hooks() -> None:
    model, batches = small_net(), small_batches()
    quantize(model, uniform_plan(model, "int4", activations="int8:affine"), batches)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("activations", ["int4:affine", "int4:affine:token", {"re:.*": "int4:affine"}])
def test_hooks_follow_copies_and_ignore_state_dicts(activations: object) -> None:
    model, batches = small_net(), small_batches()
    keys = list(model.state_dict())
    done = gq.quantize_(copy.deepcopy(model), uniform_plan(model, "int4", activations=activations), batches)
    assert list(done.state_dict()) == keys
    twin = copy.deepcopy(done)
    twin.load_state_dict(done.state_dict())
    batch = batches[0][0]
    with torch.inference_mode():
        assert torch.equal(done(batch), twin(batch))
        plain = small_net()
        plain.load_state_dict(done.state_dict())
        assert not torch.equal(done(batch), plain(batch)), "without its hooks it would give other logits"


def test_gradients_pass_straight_through() -> None:
    model, batches = small_net(), small_batches()
    done = gq.quantize_(model, uniform_plan(model, "int4", activations={"re:.*": "int4:affine"}), batches)
    done(batches[0][0]).sum().backward()
    assert all(bool((parameter.grad != 0).any()) for parameter in done.parameters())


@pytest.mark.parametrize("refine", ["none", "blocks"])
def test_refinement_runs_with_quantized_activations(refine: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    batches = [torch.randn(32, 8) for _ in range(2)]
    done = quantize(model, uniform_plan(model, "int3", activations="int4:affine"), batches, refine=refine)
    assert len(seen_by(done, "2", batches[0]).unique()) <= 16


def test_static_grids_need_calibration_and_dynamic_ones_do_not() -> None:
    model = small_net()
    with pytest.raises(PlanError, match="needs calibration"):
        gq.quantize_(model, uniform_plan(model, "int4", activations="int8:affine"))
    done = gq.quantize_(model, uniform_plan(model, "int4", activations="int4:affine:token"))
    batch = small_batches()[0][0]
    assert all(len(sample.unique()) <= 16 for sample in seen_by(done, "block", batch))
    assert len(seen_by(done, "block", batch).unique()) > 16


def test_a_layer_called_twice_is_ranged_over_both_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2, bias=False)
            nn.init.eye_(self.layer.weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(10 * self.layer(x))

    model = Twice()
    plan = uniform_plan(model, "fp32", activations="int8:affine:minmax")
    done = quantize(model, plan, [torch.tensor([[0.0, 1.0]])], norms="none")
    assert quantized_state(done).scales["layer"].scale == pytest.approx(10 / 255)
