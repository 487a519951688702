"""An interrupted run equals an uninterrupted one to the bit."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import geoquant as gq
from geoquant.errors import FileFormatError
from geoquant.quantize import quantized_state
from geoquant.recovery import Recovered, RecoveryError, recover_
from geoquant.recovery.checkpoint import CHECKPOINT_FILE


class InterruptionError(Exception):
    pass


class Noisy(nn.Module):
    """A net whose forward draws random numbers."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.dropout = inner, nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.dropout(x))


def after(steps: int) -> Any:
    """Return a loss that is cross-entropy `steps` times and then fails."""
    left = [steps]

    def loss(logits: Tensor, batch: Any) -> Tensor:
        if torch.is_grad_enabled() and logits.requires_grad:
            left[0] -= 1
            if left[0] < 0:
                raise InterruptionError
        return torch.nn.functional.cross_entropy(logits, batch[1])

    return loss


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    codes = [
        torch.equal(quantized_state(a).matrices[name].codes, matrix.codes)
        for name, matrix in quantized_state(b).matrices.items()
    ]
    return all(torch.equal(x, y) for x, y in pairs) and all(codes)


def loader(batches: list[tuple[Tensor, Tensor]]) -> DataLoader[Any]:
    inputs, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return DataLoader(TensorDataset(inputs, labels), batch_size=32, shuffle=True)


@pytest.mark.parametrize("kind", ["list", "loader"])
@pytest.mark.parametrize(
    "options", [{}, {"optimizer": "sgd", "schedule": "one-cycle", "freeze": 0.01, "dampening": 0.1}]
)
def test_resuming_changes_nothing(kind: str, options: dict[str, Any], net, batches, tmp_path) -> None:
    feed = (lambda: batches) if kind == "list" else (lambda: loader(batches))
    net = Noisy(net)
    plan = gq.uniform_plan(net, "int2", activations="int4:affine")
    start = gq.quantize_(copy.deepcopy(net), plan, batches)
    common: dict[str, Any] = {
        "epochs": 2,
        "rate": 3e-3,
        "seed": 3,
        "trace_every": 4,
        "validation": batches[:2],
        "validate_every": 3,
        "checkpoint_every": 5,
        **options,
    }

    def go(model: nn.Module, loss: Any, **more: Any) -> Recovered:
        return recover_(model, plan, feed(), loss, **common, **more)

    whole, parts = copy.deepcopy(start), copy.deepcopy(start)
    expected = go(whole, after(999))
    torch.manual_seed(77)  # what else the process drew must not matter
    for steps in (7, 5):  # interrupted in the second step after a checkpoint, and again in the second epoch
        with pytest.raises(InterruptionError):
            go(parts, after(steps), checkpoint=tmp_path, resume=True)
        assert same(parts, start)  # nothing happens to the model before the end
    found = go(parts, after(999), checkpoint=tmp_path, resume=True)
    assert same(whole, parts)
    assert found.losses == expected.losses
    assert found.trace == expected.trace
    assert (found.start, found.best, found.steps) == (expected.start, expected.best, expected.steps)


def test_a_finished_run_is_not_trained_again(net, batches, tmp_path) -> None:
    plan = gq.uniform_plan(net, "int2")
    first, second = copy.deepcopy(net), copy.deepcopy(net)
    recover_(first, plan, batches, epochs=1, checkpoint=tmp_path)
    recover_(second, plan, batches, after(0), epochs=1, checkpoint=tmp_path, resume=True)
    assert same(first, second)


def test_another_runs_checkpoint_is_refused(net, batches, tmp_path) -> None:
    plan = gq.uniform_plan(net, "int2")
    recover_(copy.deepcopy(net), plan, batches, steps=2, checkpoint=tmp_path)
    with pytest.raises(RecoveryError, match="another run"):
        recover_(copy.deepcopy(net), plan, batches, steps=2, rate=0.5, checkpoint=tmp_path, resume=True)
    other = gq.uniform_plan(net, "int3")
    with pytest.raises(RecoveryError, match="another run"):
        recover_(copy.deepcopy(net), other, batches, steps=2, checkpoint=tmp_path, resume=True)


def test_a_truncated_checkpoint_is_refused(net, batches, tmp_path) -> None:
    plan = gq.uniform_plan(net, "int2")
    recover_(copy.deepcopy(net), plan, batches, steps=2, checkpoint=tmp_path)
    file = tmp_path / CHECKPOINT_FILE
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(FileFormatError, match="not a whole checkpoint"):
        recover_(copy.deepcopy(net), plan, batches, steps=2, checkpoint=tmp_path, resume=True)


def test_batches_that_can_be_walked_once_are_refused(net, batches) -> None:
    def once() -> Iterator[Any]:
        yield from batches

    with pytest.raises(gq.GeoquantError, match="only once"):
        recover_(copy.deepcopy(net), gq.uniform_plan(net, "int2"), once())
