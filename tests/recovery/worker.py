"""What each process of the distributed tests does."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import distributed, nn

import geoquant as gq
from geoquant.recovery import Recovered, recover_

SETTINGS: dict[str, Any] = {
    "steps": 6,
    "labels": 1.0,
    "rate": 0.1,
    "free_rate": 0.05,
    "optimizer": "sgd",
    "norms": "frozen",
    "trace_every": 3,
}


def train(net: nn.Module, batches: list[Any], **options: Any) -> tuple[nn.Module, Recovered]:
    """Recover a copy of `net` at 2-bit weights and 4-bit activations."""
    model = copy.deepcopy(net)
    plan = gq.uniform_plan(model, "int2", activations="int4:affine")
    gq.quantize_(model, plan, batches)
    return model, recover_(model, plan, batches, teacher=net, **{**SETTINGS, **options})


def work(rank: int, world: int, folder: str, net: nn.Module, batches: list[Any]) -> None:
    """Train under DDP and under FSDP2, and save what this process ends with."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    for kind in ("ddp", "fsdp"):
        place = Path(folder) / f"{kind}-checkpoint"
        model, result = train(net, batches, parallel=kind, checkpoint=place)
        again, _ = train(net, batches, parallel=kind, checkpoint=place, resume=True)
        tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        tensors["losses"] = torch.tensor(result.losses)
        tensors["inward"] = torch.tensor([point.inward for point in result.trace.points])
        tensors["resumed"] = torch.tensor(
            [
                all(
                    torch.equal(a, b)
                    for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
                )
            ]
        )
        save_file(tensors, Path(folder) / f"{kind}-{rank}.safetensors")
    distributed.destroy_process_group()
