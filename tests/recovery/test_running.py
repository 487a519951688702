"""Batch norms at the beginning of training: the same function, with the statistics that batches have now."""

from __future__ import annotations

import copy

import torch
from torch import nn

import geoquant as gq
from geoquant.evaluation import divergence
from geoquant.recovery.running import absorb_statistics_


def in_training(model: nn.Module) -> nn.Module:
    """Return a copy that normalizes by each batch even when it is evaluated."""
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
    return copied


def test_absorbing_keeps_the_function_and_brings_training_mode_to_it(net, batches) -> None:
    model = gq.quantize_(copy.deepcopy(net), gq.uniform_plan(net, "ternary"), batches)
    whole = [tuple(torch.cat(parts) for parts in zip(*batches, strict=True))]
    before = model(whole[0][0])
    away = divergence(model, in_training(model), whole).value
    assert absorb_statistics_(model, batches) == 1
    torch.testing.assert_close(model(whole[0][0]), before, rtol=1e-4, atol=1e-4)
    assert away > 1e-3  # corrected norms: another function while the statistics are those of each batch
    assert divergence(model, in_training(model), whole).value < 1e-6


def test_statistics_are_those_of_all_samples_and_modes_stay(net, batches) -> None:
    net.train()
    inputs = [batch[0] for batch in batches[:3]]
    seen: list[torch.Tensor] = []
    hook = net.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    absorb_statistics_(net, inputs)
    hook.remove()
    rows = torch.cat(seen).transpose(0, 1).flatten(1)
    torch.testing.assert_close(net.norm.running_mean, rows.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net.norm.running_var, rows.var(1, correction=0), rtol=1e-4, atol=1e-5)
    assert net.training
    assert len(net.norm._forward_pre_hooks) == 0


def test_nets_without_norms_or_without_statistics_stay_as_they_are() -> None:
    for model in (nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False), nn.BatchNorm1d(2, affine=False)):
        before = copy.deepcopy(model.state_dict())
        assert absorb_statistics_(model, [torch.randn(4, 2)]) == 0
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
