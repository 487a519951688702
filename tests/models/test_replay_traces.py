"""A replay leaves nothing behind, and counts what a forward costs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from geoquant.errors import ModelError
from geoquant.models import (
    Replay,
    Site,
    find_sites,
)
from geoquant.models.observation import observe
from geoquant.models.zoo import resnet20_cifar10
from models.replays import X, check_exact


def test_the_model_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    model = resnet20_cifar10()
    model.train()
    model.layer1.eval()
    own = model.linear.forward
    model.linear.forward = lambda x: own(x) * 2  # such as accelerate does
    before = copy.deepcopy({name: dict(vars(module)) for name, module in model.named_modules() if name != "linear"})
    kept = model.linear.forward
    state = copy.deepcopy(model.state_dict())
    flags = [module.training for module in model.modules()]
    with Replay(model, torch.randn(2, 3, 32, 32)) as replay:
        replay.run(find_sites(model)[5])
    assert model.linear.forward is kept
    assert all(set(vars(module)) == set(before[name]) for name, module in model.named_modules() if name in before)
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_nothing_stays_behind_when_the_model_raises() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("stop")

    model = Fails()
    with pytest.raises(RuntimeError, match="stop"):
        Replay(model, X)
    assert "forward" not in vars(model)
    assert "forward" not in vars(model.a)


def test_closed_and_foreign_are_refused() -> None:
    model = nn.Sequential(nn.Linear(6, 2))
    (site,) = find_sites(model)
    replay = Replay(model, X)
    with pytest.raises(ModelError, match="another model's"):
        replay.run(Site("other", "other.weight", "linear", (1, 1)))
    replay.close()
    with pytest.raises(ModelError, match="closed"):
        replay.run(site)


def test_user_hooks_still_run_and_count_once() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2))
    model[0].register_forward_hook(lambda module, inputs, output: output * 2)
    check_exact(model, X)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_flops_by_hand(mode: Callable[[], Any]) -> None:
    """Two FLOPs per multiply-add: 2·N·in·out for linear, 2·N·out·H·W·in·k² for convolution."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 25, 7))
    with mode():
        seen = observe(model, torch.zeros(2, 3, 5, 5))
    convolution, linear = 2 * 2 * 4 * 25 * 3 * 9, 2 * 2 * 100 * 7
    assert [call.flops for call in seen.calls] == [convolution + linear, convolution, 0, linear]
    assert seen.flops == convolution + linear


def test_fused_attention_counts_like_its_parts() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    batch = torch.randn(2, 5, 8)
    fused = observe(layer, batch).flops
    by_hand = 2 * 2 * 5 * 8 * (4 * 8 + 2 * 16) + 4 * 2 * 5 * 5 * 8
    assert fused == by_hand
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        assert observe(layer, batch).flops == by_hand
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
