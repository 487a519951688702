"""What an effort does follows from the model."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from geoquant.plan import uniform_plan
from geoquant.quantize import quantize, recipes
from nets import small_batches, small_net


class Asked:
    """A refinement that changes nothing, and remembers that it was asked."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, reference: nn.Module, model: nn.Module, sites: Any, matrices: Any, *_: Any) -> Any:
        self.times += 1
        return matrices


@pytest.mark.parametrize("norms", [True, False], ids=["batch norms", "none"])
def test_best_learns_blocks_where_batch_norms_are_and_the_network_elsewhere(
    norms: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {"blocks": Asked(), "network": Asked()}
    monkeypatch.setattr(recipes, "REFINEMENTS", made)
    model = small_net()
    has = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert has, "the net of the tests lost its batch norms"
    if not norms:
        for name, child in list(model.named_modules()):
            if isinstance(child, nn.BatchNorm2d):
                model.get_submodule(name.rpartition(".")[0]).register_module(name.rpartition(".")[2], nn.Identity())
    quantize(model, uniform_plan(model, "int3"), small_batches(2), effort="best")
    assert {name: each.times for name, each in made.items()} == {"blocks": int(norms), "network": int(not norms)}
