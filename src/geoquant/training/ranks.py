"""How do several processes come to the same decision? By deciding on the same numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """Return this process's rank, 0 outside of a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def is_sharded(tensor: Tensor) -> bool:
    """Whether each rank holds a part of `tensor` only (FSDP2)."""
    return any(not placement.is_replicate() for placement in getattr(tensor, "placements", ()))


def agreed(values: Sequence[float], how: str = "mean") -> list[float]:
    """Return the ``mean``, ``sum`` or ``max`` of `values` over all ranks, the same on each.

    >>> agreed([1.0, 2.0])
    [1.0, 2.0]
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return list(values)
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    packed = torch.tensor(list(values), dtype=torch.float64, device=device)
    dist.all_reduce(packed, dist.ReduceOp.MAX if how == "max" else dist.ReduceOp.SUM)
    found: list[float] = (packed / dist.get_world_size() if how == "mean" else packed).tolist()
    return found
