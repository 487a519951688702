"""Two processes give the result of one, under DDP and under FSDP2."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file
from tests.recovery.worker import train, work

import geoquant as gq
from geoquant.errors import DataError, UnknownNameError
from geoquant.recovery import RecoveryError, recover_
from geoquant.recovery.feeding import part_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, trained, batches) -> Path:
    """Both processes' results."""
    place = tmp_path_factory.mktemp("processes")
    mp.spawn(work, (2, str(place), trained, batches), nprocs=2)
    return place


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_give_what_one_gives(kind: str, folder: Path, trained, batches) -> None:
    model, result = train(trained, batches)
    for rank in (0, 1):
        found = load_file(folder / f"{kind}-{rank}.safetensors")
        torch.testing.assert_close(found.pop("losses"), torch.tensor(result.losses), rtol=1e-3, atol=1e-5)
        inward = torch.tensor([point.inward for point in result.trace.points])
        torch.testing.assert_close(found.pop("inward"), inward, rtol=1e-2, atol=1e-4)
        assert bool(found.pop("resumed"))
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(
                found[name], tensor, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: name + text
            )


def test_training_moved_something(trained, batches) -> None:
    """The twin: had nothing been trained, the comparison above would hold as well."""
    model, result = train(trained, batches)
    plan = gq.uniform_plan(trained, "int2", activations="int4:affine")
    start = gq.quantize_(copy.deepcopy(trained), plan, batches)
    pairs = zip(model.state_dict().items(), start.state_dict().values(), strict=True)
    moved = {name: float((after - before).abs().max()) for (name, after), before in pairs}
    assert moved["block.weight"] > 1e-3
    assert moved["head.bias"] > 1e-3
    assert result.losses[0] != result.losses[-1]


def test_the_parts_of_a_batch_make_its_mean() -> None:
    batch = (torch.arange(7.0), torch.arange(7))
    parts = [part_of(batch, rank, 3) for rank in range(3)]
    assert sum(weight * float(part[0].mean()) for part, weight in parts) / 3 == pytest.approx(3.0)
    assert sorted(int(each) for part, _ in parts for each in part[1]) == list(range(7))
    with pytest.raises(DataError, match="shared by 9"):
        part_of(batch, 0, 9)


def test_parallel_training_without_processes_is_refused(net, batches) -> None:
    plan = gq.uniform_plan(net, "int2")
    with pytest.raises(RecoveryError, match="torchrun"):
        recover_(net, plan, batches, parallel="ddp")
    with pytest.raises(UnknownNameError):
        recover_(net, plan, batches, parallel="magic")
