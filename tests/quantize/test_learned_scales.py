"""Static scales that move while codes are learned: they mend a bad range, and go back when they do not help."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import geoquant as gq
from geoquant.models import inference
from geoquant.plan import uniform_plan
from geoquant.quantize import BlockTuning, NetworkTuning, quantize, quantized_state
from geoquant.quantize.activations import quantizers_of
from nets import small_batches, small_net


@pytest.mark.parametrize("refine", ["network", "blocks"])
def test_refinement_mends_a_scale_that_the_range_got_wrong(refine: str) -> None:
    """Outliers stretch the min-max range; learning shrinks it. Scales in the state are those of the hooks."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    batches = [torch.randn(64, 6) for _ in range(2)]
    batches[0][0, 0] = 30.0
    plan = uniform_plan(model, "fp32", activations={"0": "int4:affine:minmax"})
    tuning = {"network": NetworkTuning(steps=60, scales=0.02), "blocks": BlockTuning(steps=60, scales=0.02)}[refine]
    plain = quantize(model, plan, batches, norms="none")
    done = quantize(model, plan, batches, norms="none", refine=tuning)
    scales = [quantized_state(each).scales["0"].scale for each in (plain, done)]
    assert scales[1] < 0.9 * scales[0]
    assert quantizers_of(done)[0].scale == quantized_state(done).scales["0"]
    assert quantizers_of(done)[0].stretch is None
    assert float(gq.divergence(model, done, batches).value) < float(gq.divergence(model, plain, batches).value)


def test_learning_that_does_not_help_is_undone() -> None:
    model, batches = small_net(), small_batches()
    plan = uniform_plan(model, "int4", activations={"re:.*": "int4:affine"})
    plain = quantize(model, plan, batches)
    wild = quantize(model, plan, batches, refine=NetworkTuning(steps=3, codes=9.0, scales=3.0, free=9.0))
    assert quantized_state(plain).scales == quantized_state(wild).scales
    assert torch.equal(outputs_of(plain, batches), outputs_of(wild, batches))


def outputs_of(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    with inference(model):
        return torch.cat([model(inputs) for inputs, _ in batches])
