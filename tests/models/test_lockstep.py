"""Every station is met once, in order of execution, with inputs that earlier changes give; nothing stays behind."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

from geoquant.models import Arrival, walk_in_lockstep
from nets import small_batches, small_net


def test_inputs_come_from_the_changed_prefix() -> None:
    model = small_net()
    reference = small_net()
    batches = small_batches()
    met = []

    def zero(station: nn.Module, arrivals: list[Arrival]) -> None:
        met.append([arrival.args[0].clone() for arrival in arrivals])
        with torch.no_grad():
            station.weight.mul_(0.5)

    walk_in_lockstep(model, batches, [model.head, model.block, model.stem], zero)  # given out of order
    assert [len(arrivals) for arrivals in met] == [3, 3, 3]
    assert all(torch.equal(seen, batch) for seen, (batch, _) in zip(met[0], batches, strict=True))
    with torch.no_grad():
        reference.stem.weight.mul_(0.5)
        for seen, (batch, _) in zip(met[1], batches, strict=True):
            assert torch.equal(seen, torch.relu(reference.norm(reference.stem(batch))))


class Branching(nn.Module):
    """Takes one of two ways, as the data say; then meets again."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.end = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.left(x) if float(x.sum()) > 0 else self.right(self.left(self.right(x)))
        return self.end(x)


def test_branches_and_repeated_calls_end_with_every_station_met_once() -> None:
    model, met = Branching(), []
    batches = [torch.ones(1, 2), -torch.ones(1, 2), 2 * torch.ones(1, 2)]
    names = {module: name for name, module in model.named_modules()}
    stations = [model.right, model.left, model.end]
    walk_in_lockstep(model, batches, stations, lambda s, a: met.append((names[s], len(a))))
    assert met == [("right", 1), ("left", 3), ("end", 3)]
    met.clear()
    walk_in_lockstep(model, batches, stations[::-1], lambda s, a: met.append((names[s], len(a))))
    assert sorted(met) == [("end", 2), ("left", 2), ("right", 1)], "the twin: another order splits the batches"


@pytest.mark.parametrize("where", ["act", "model", "start"])
def test_errors_come_out_and_no_thread_or_hook_stays(where: str) -> None:
    model = small_net()
    batches = small_batches()
    if where != "act":
        batches[2 if where == "model" else 0] = (torch.zeros(1, 3, 8, 8), torch.zeros(1))
    before = threading.active_count()

    def fail(station: nn.Module, arrivals: list[Arrival]) -> None:
        if where == "act":
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError if where == "act" else RuntimeError):
        walk_in_lockstep(model, batches, [model.block], fail)
    assert threading.active_count() == before
    assert not model.block._forward_pre_hooks


def test_gradients_are_off_and_modes_come_back() -> None:
    model = small_net().train()
    model.norm.eval()

    def check(station: nn.Module, arrivals: list[Arrival]) -> None:
        assert not arrivals[0].args[0].requires_grad
        assert not station.training

    walk_in_lockstep(model, small_batches(), [model.head], check)
    assert model.training
    assert not model.norm.training
