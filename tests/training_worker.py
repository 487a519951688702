"""One rank of a small run under torchrun; writes what it decided and trained as JSON. Not a test by itself."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent))

from geoquant.errors import GeoquantError
from geoquant.training import LayerPrecision, adaptive
from geoquant.training.schedules import GradientOnly, NumGeom, Static
from training_nets import conv_net, image_batches


def main(kind: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, model, schedule = dist.get_rank(), conv_net(), NumGeom(every=3, share=0.3)
    if kind == "ddp":
        model = torch.nn.parallel.DistributedDataParallel(model)
    else:
        from torch.distributed.fsdp import fully_shard

        for layer in (model.stem, model.deep, model.head, model):
            fully_shard(layer, mesh=dist.device_mesh.init_device_mesh("cpu", (2,)))
        schedule = GradientOnly(every=3, start=5)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    refused = ""
    if kind == "fsdp":
        try:
            adaptive(model, optimizer, NumGeom())
        except GeoquantError as error:
            refused = str(error)
    losses = []
    with adaptive(model, optimizer, schedule) as run:
        for step, (x, y) in enumerate(image_batches(12, seed=rank)):  # each rank has data of its own
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            if step == 7 and rank == 0 and kind == "fsdp":
                next(model.parameters()).grad.to_local().fill_(float("nan"))  # seen by one rank only
            optimizer.step()
            losses.append(float(loss.detach()))
    document = {**decided(run), "losses": losses, "refused": refused, "weights": whole(model)}
    if kind == "ddp":  # stored weights in few bits stay the same on every rank
        kept = Static(LayerPrecision("int8", "int8", "int8", "fp32", "int8", "int8"), "kept in 8 bits")
        with adaptive(model, optimizer, kept):
            for x, y in image_batches(3, seed=rank):
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
        document["kept"] = whole(model)
    Path(folder, f"{rank}.json").write_text(json.dumps(document))
    dist.destroy_process_group()


def decided(run: Any) -> dict[str, Any]:
    changes = [asdict(change) for change in run.log.changes]
    return {"changes": changes, "anomalies": run.log.anomalies, "step": run.step}


def whole(model: torch.nn.Module) -> list[float]:
    full = (p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters())
    return [float(p.detach().double().sum()) for p in full]


if __name__ == "__main__":
    main(*sys.argv[1:])
