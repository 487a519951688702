"""How is one tensor read and written that several processes hold in parts?

Under FSDP2 (`torch.distributed.fsdp.fully_shard`) parameters are `DTensor`s, which are known here by what they can do:
importing their module takes seconds. Every process must call these functions together, in the same order.
"""

from __future__ import annotations

import torch
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether several processes hold parts of `tensor`.

    >>> is_sharded(torch.ones(2))
    False
    """
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """Return a sharded tensor in one piece, and any other as it is; detached.

    >>> whole(torch.ones(2))
    tensor([1., 1.])
    """
    gather = getattr(tensor.detach(), "full_tensor", None)
    found: Tensor = tensor.detach() if gather is None else gather()
    return found


@torch.no_grad()
def assign_(target: Tensor, value: Tensor) -> None:
    """Copy a tensor in one piece into `target`, sharded or not, whose memory format stays.

    >>> target = torch.zeros(2)
    >>> assign_(target, torch.ones(2))
    >>> target
    tensor([1., 1.])
    """
    if is_sharded(target):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(target, DTensor)
        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
    target.copy_(value)
