"""Where latent weights start: at the float weights where these round to the codes, well inside the cells elsewhere."""

from __future__ import annotations

import copy

import torch

import geoquant as gq
from geoquant.quantize import quantized_state
from geoquant.recovery import prepare_
from geoquant.recovery.latents import _MARGIN


def test_float_weights_in_their_cells_stay_and_others_start_inside(net, batches) -> None:
    plan = gq.uniform_plan(net, "int3")
    model = gq.quantize_(copy.deepcopy(net), plan, batches, norms="none")
    codes = quantized_state(model).matrices["block.weight"].dequantize()
    latents = prepare_(model, reference=net, method="ste")
    each, start = latents.weights["block.weight"], latents.latent("block.weight")
    step = each.spread(each.steps())
    level = (codes.view_as(start) / step).round()
    wanted, found = net.block.weight.detach() / step, start / step
    inside = (wanted - level).abs() < 0.45
    torch.testing.assert_close(found[inside], wanted[inside], rtol=1e-5, atol=1e-5)
    low, high = each.grid.format.levels[[0, -1]].tolist()
    outside = ((wanted - level).abs() > 0.5) & (level > low) & (level < high)
    assert int(outside.sum()) > 10  # GPTQ moves many
    torch.testing.assert_close((found - level)[outside].abs(), torch.full((int(outside.sum()),), 0.5 - _MARGIN))
    assert torch.equal(each.round(start)[0].detach(), model.block.weight.detach())
