"""How do several processes train one quantized model, with the result that one process would have?

Started by ``torchrun``, every process calls `recover_` with the same arguments. Each takes every so many-th sample of a
batch; their losses are weighted so that the averaged gradient is that of the whole batch. DDP keeps the model in each
process; FSDP2 (`fully_shard`) shares out parameters, gradients and the optimizer's state. Levels, steps and
oscillations are the same everywhere, since they follow from the same latent weights. What differs from one process:
batch norms in training mode see the part of a batch, so use ``norms="frozen"`` where results must agree.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from geoquant.errors import UnknownNameError, suggest
from geoquant.recovery.feeding import part_of
from geoquant.recovery.settings import RecoveryError


class Crew(Protocol):
    """The processes that take part in a run."""

    first: bool

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return what a training step calls."""
        ...

    def share(self, batch: Any) -> tuple[Any, float]:
        """Return this process's part of a batch, and the weight of its mean loss."""
        ...

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean over processes."""
        ...

    def agree_(self, model: nn.Module) -> None:
        """Give batch norms the mean of their statistics over processes."""
        ...


class Alone:
    """One process.

    >>> Alone().share("batch")
    ('batch', 1.0)
    """

    first = True

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model itself."""
        return model

    def share(self, batch: Any) -> tuple[Any, float]:
        """Return all of it."""
        return batch, 1.0

    def mean(self, value: Tensor) -> Tensor:
        """Return the value."""
        return value

    def agree_(self, model: nn.Module) -> None:
        """Nothing to agree on."""


class Together:
    """The processes of torch's default group.

    Args:
        sharded: whether parameters are shared out (FSDP2) or kept everywhere (DDP).
    """

    def __init__(self, sharded: bool) -> None:
        self._sharded = sharded
        self._rank, self._world = distributed.get_rank(), distributed.get_world_size()
        self.first = self._rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """Shard the model in place, or return it inside DDP."""
        if self._sharded:
            from torch.distributed.fsdp import fully_shard

            fully_shard(model)
            return model
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(model, broadcast_buffers=False)

    def share(self, batch: Any) -> tuple[Any, float]:
        """Return every so many-th sample."""
        return part_of(batch, self._rank, self._world)

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean over processes."""
        total = value.detach().clone()
        distributed.all_reduce(total)
        return total / self._world

    @torch.no_grad()
    def agree_(self, model: nn.Module) -> None:
        """Give batch norms the mean of their statistics over processes."""
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                for buffer in (module.running_mean, module.running_var):
                    if buffer is not None:
                        buffer.copy_(self.mean(buffer))


@contextmanager
def joined(parallel: str) -> Iterator[bool]:
    """Join the processes that ``torchrun`` started, if it did; yield whether this one is the first.

    >>> with joined("none") as first:
    ...     first
    True
    """
    started = parallel != "none" and "RANK" in os.environ and "WORLD_SIZE" in os.environ
    if not started or distributed.is_initialized():
        yield not started or distributed.get_rank() == 0
        return
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield distributed.get_rank() == 0
    finally:
        distributed.destroy_process_group()


PARALLEL = ("auto", "none", "ddp", "fsdp")


def make_crew(parallel: str) -> Crew:
    """Return the processes for "none", "ddp", "fsdp", or "auto": DDP where torch's process group is set up.

    Raises:
        UnknownNameError: it is none of these.
        RecoveryError: there is no process group.
    """
    if parallel not in PARALLEL:
        raise UnknownNameError(f"there is no way to train in parallel named '{parallel}'{suggest(parallel, PARALLEL)}")
    ready = distributed.is_available() and distributed.is_initialized()
    if parallel in ("ddp", "fsdp") and not ready:
        raise RecoveryError(
            f"parallel='{parallel}' needs processes: start with torchrun and call "
            "torch.distributed.init_process_group() first"
        )
    if parallel == "none" or not ready or (parallel == "auto" and distributed.get_world_size() == 1):
        return Alone()
    return Together(parallel == "fsdp")
