"""The traced pair is the two models, whatever the style in which they were written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from bounds.models import Pooled, Rearranged, Residual, perturbed, seeded
from geoquant.bounds.graph import Constant, Unknown, call, interpret, operation, trace_pair
from geoquant.errors import ModelError


def run(model: nn.Module, quantized: nn.Module, x: Tensor, side: str) -> Tensor:
    """Evaluate one of the two models through the shared graph, in float64."""
    graph = trace_pair(model, quantized, x)

    def pick(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [pick(one) for one in value]
        return getattr(value, side) if isinstance(value, Constant) else value

    def rule(node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
        return call(node, pick(args), {name: pick(value) for name, value in kwargs.items()})

    result, missing = interpret(graph, x.double(), rule)
    assert missing == ()
    return result


@pytest.mark.parametrize(("make", "shape"), [(Residual, (2, 6, 6)), (Pooled, (1, 9, 9)), (Rearranged, (2, 3))])
def test_the_graph_computes_both_models(make: type[nn.Module], shape: tuple[int, ...]):
    model = seeded(make)
    quantized, x = perturbed(model, 0.1), torch.randn(1, *shape)
    for one, side in ((model, "exact"), (quantized, "stored")):
        expected = one.double()(x.double()).detach()
        one.float()
        assert torch.allclose(run(model, quantized, x, side), expected, atol=1e-12)


def test_an_update_in_place_does_not_change_what_was_read_before():
    class Reused(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            z = y + 1
            y.relu_()
            return y + z

    x = torch.tensor([[-1.0, 3.0]])
    model = Reused().eval()
    assert torch.equal(run(model, model, x, "exact"), model(x).double())


def test_a_difference_in_a_buffer_is_seen():
    model = seeded(Residual)
    quantized = perturbed(model, 0.0)
    quantized.bn1.running_mean += 0.5
    graph = trace_pair(model, quantized, torch.zeros(1, 2, 6, 6))
    assert [name for name, constant in graph.constants.items() if not constant.same] == ["b_bn1_running_mean"]


def test_tied_weights_are_read_where_they_are_used():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 3, bias=False)).eval()
    model[2].weight = model[0].weight
    x = torch.randn(1, 3)
    assert torch.allclose(run(model, perturbed(model, 0.2), x, "exact"), model(x).double(), atol=1e-6)


def test_an_activation_quantizer_in_one_model_is_refused():
    class Rounded(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.round(x * 16) / 16)

    layers = [nn.Linear(2, 2), nn.ReLU()]
    with pytest.raises(ModelError, match=r"different operations|operations; they must"):
        trace_pair(nn.Sequential(*layers).eval(), Rounded(*layers).eval(), torch.zeros(1, 2))


def test_different_constants_in_the_code_are_refused():
    class Clipped(nn.Module):
        def __init__(self, high: float) -> None:
            super().__init__()
            self.high = high

        def forward(self, x: Tensor) -> Tensor:
            return F.hardtanh(x, 0.0, self.high)

    with pytest.raises(ModelError, match="different operations"):
        trace_pair(Clipped(1.0).eval(), Clipped(2.0).eval(), torch.zeros(1, 2))


def test_control_flow_on_values_cannot_be_traced_and_says_so():
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ModelError, match="cannot trace"):
        trace_pair(Branching().eval(), Branching().eval(), torch.zeros(1, 2))


def test_what_depends_on_an_unknown_is_unknown_and_what_does_not_is_not():
    class Forked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            dead = torch.sort(x).values
            return x * 2 if dead.shape[0] else dead

    from geoquant.bounds.graph import NotCovered

    def rule(node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if operation(node) == "sort":
            raise NotCovered("sort")
        return call(node, args, kwargs)

    x = torch.ones(1, 2, dtype=torch.float64)
    result, missing = interpret(trace_pair(Forked().eval(), Forked().eval(), x.float()), x, rule)
    assert not isinstance(result, Unknown)
    assert result.tolist() == [[2.0, 2.0]]
    assert missing == ()
