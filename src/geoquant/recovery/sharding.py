"""How is one tensor read and written that several processes hold in parts?

Under FSDP2 (`torch.distributed.fsdp.fully_shard`) parameters are `DTensor`s. Every process must call these functions
together, in the same order.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """Return a sharded tensor in one piece, and any other as it is; detached.

    >>> whole(torch.ones(2))
    tensor([1., 1.])
    """
    detached = tensor.detach()
    return detached.full_tensor() if isinstance(detached, DTensor) else detached


@torch.no_grad()
def assign_(target: Tensor, value: Tensor) -> None:
    """Copy a tensor in one piece into `target`, sharded or not, whose memory format stays.

    >>> target = torch.zeros(2)
    >>> assign_(target, torch.ones(2))
    >>> target
    tensor([1., 1.])
    """
    if isinstance(target, DTensor):
        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
    target.copy_(value)
