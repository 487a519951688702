"""Channels are followed through what moves them, and held by everything else."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geoquant.errors import ModelError
from geoquant.transforms.carrying import HOMOGENEOUS, LINEAR, VIEWS, Carried, carry
from geoquant.transforms.recording import Flow, record


class Between(nn.Module):
    """Two layers with anything between them."""

    def __init__(self, between, out: int = 4, features: int = 4) -> None:
        super().__init__()
        self.first, self.second, self.between = nn.Linear(3, out), nn.Linear(features, 2), between

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(x)))


def followed(between, rules=HOMOGENEOUS, out: int = 4, features: int = 4, rows: tuple[int, ...] = (2, 5)) -> Carried:
    model = Between(between, out, features)
    flow = record(model, torch.randn(*rows, 3))
    return carry(flow, flow.call_of(model.first).outputs[0], -1, rules)


PASSES = {
    "nothing": (lambda x: x, VIEWS, [0, 1, 2, 3]),
    "reversed": (lambda x: x.flip(-1), VIEWS, [3, 2, 1, 0]),
    "reordered": (lambda x: x.unflatten(-1, (2, 2)).transpose(-1, -2).flatten(-2), VIEWS, [0, 2, 1, 3]),
    "part": (lambda x: x[..., 1:3].repeat(1, 1, 2), VIEWS, [1, 2, 1, 2]),
    "in place": (lambda x: F.relu_(x), HOMOGENEOUS, [0, 1, 2, 3]),
    "gated": (lambda x: x * torch.sigmoid(torch.ones(4)), HOMOGENEOUS, [0, 1, 2, 3]),
    "averaged": (lambda x: x.mean(1), HOMOGENEOUS, [0, 1, 2, 3]),
    "mixed over rows": (lambda x: torch.ones(2, 5, 5).softmax(-1) @ x, LINEAR, [0, 1, 2, 3]),
}


@pytest.mark.parametrize("name", PASSES)
def test_channels_arrive_in_their_places(name: str) -> None:
    between, rules, columns = PASSES[name]
    found = followed(between, rules)
    assert [each.columns.tolist() for each in found.arrivals] == [columns]
    assert not found.pinned


HOLDS = {
    "sum of channels": lambda x: x + x.flip(-1),
    "product with itself": lambda x: x * x,
    "product with a part of itself": lambda x: x * x[..., :1],
    "smooth": F.gelu,
    "divisor": lambda x: 1 / x,
    "columns that mix": lambda x: x @ torch.ones(2, 4, 4),
    "softmax": lambda x: x.softmax(-1),
    "average of channels": lambda x: x.mean(-1, keepdim=True).expand(x.shape),
    "positions": lambda x: x.transpose(1, 2).reshape(2, 5, 4),
}


@pytest.mark.parametrize("name", HOLDS)
def test_channels_that_meet_are_held(name: str) -> None:
    found = followed(HOLDS[name])
    assert set(found.pinned) == {0, 1, 2, 3}, name


def test_only_the_channels_concerned_are_held() -> None:
    found = followed(lambda x: torch.cat([x[..., :2].exp(), x[..., 2:].exp()], -1) * 0 + x.relu())
    assert set(found.pinned) == {0, 1, 2, 3}
    found = followed(lambda x: x[..., 2:].relu() * x[..., :2].sigmoid(), features=2)
    assert set(found.pinned) == {0, 1}
    assert found.arrivals[0].columns.tolist() == [2, 3]


def test_attention_lets_values_through_and_nothing_else() -> None:
    def attend(x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, 2)).transpose(1, 2) for part in x.split(4, -1))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    for rules in (LINEAR, HOMOGENEOUS):
        found = followed(attend, rules, out=12)
        assert found.arrivals[0].columns.tolist() == [8, 9, 10, 11]
        assert set(found.pinned) == set(range(8))
        assert found.blocks[0].tolist() == [[8, 9], [10, 11]]
    assert set(followed(attend, VIEWS, out=12).pinned) == set(range(12))


def test_a_view_that_is_written_spoils_the_whole() -> None:
    def write(x: Tensor) -> Tensor:
        x[..., 0].mul_(2.0)
        return x

    assert "written in place under another name" in followed(write).pinned[0]


def test_memory_that_is_used_again_is_not_taken_for_the_same_tensor() -> None:
    """Freed activations hand their memory on; writes into the new tensor are none into the old one."""

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(6))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = F.relu_(layer(x))
            return x

    assert not record(Chain(), torch.randn(8, 64)).rewritten


def test_what_is_recorded() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.MultiheadAttention(2, 1, batch_first=True))

    def forward(net: nn.Module, x: Tensor) -> Tensor:
        y = net[1](net[0](x))
        return net[2](y, y, y)[0] + net[0].weight.sum()

    flow: Flow = record(model, torch.randn(1, 3, 2), forward)
    assert [step.name for step in flow.steps] == ["0", "1", "2", "sum", "add"]
    assert len(set(flow.steps[2].inputs)) == 1
    assert id(model[0].weight) in flow.bare
    assert id(model[2].in_proj_weight) not in flow.bare, "attention reads its own weights"
    assert flow.made_by(flow.steps[0].inputs[0]) is None
    with pytest.raises(ModelError, match="compiled"):
        record(torch.compile(model), torch.randn(1, 3, 2), forward)
