"""Random directions that come back the same whenever they are asked for.

A probe is drawn from a seed and its numbers, not kept: the same probe visits every batch, on any device,
in any order of work, at no memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def _generator(seed: int, *key: int) -> torch.Generator:
    mixed = seed & 0xFFFFFFFF
    for number in key:
        # splitmix64: neighbouring keys give unrelated streams.
        mixed = (mixed * 0x100000001 + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 31
    return torch.Generator().manual_seed(mixed >> 1)


def signs(like: Sequence[Tensor], seed: int, *key: int) -> list[Tensor]:
    """Return independent ±1 entries (Rademacher) in the shapes of `like`.

    >>> a, b = signs([torch.zeros(4)], 0, 1)[0], signs([torch.zeros(4)], 0, 1)[0]
    >>> torch.equal(a, b), a.abs().tolist()
    (True, [1.0, 1.0, 1.0, 1.0])
    """
    source = _generator(seed, *key)
    return [torch.randint(0, 2, tuple(x.shape), generator=source, dtype=torch.int8).to(x).mul_(2).sub_(1) for x in like]


def gaussian(like: Sequence[Tensor], seed: int, *key: int) -> list[Tensor]:
    """Return independent standard normal entries in the shapes of `like`.

    >>> gaussian([torch.zeros(2, 3)], 0)[0].shape
    torch.Size([2, 3])
    """
    source = _generator(seed, *key)
    return [torch.randn(tuple(x.shape), generator=source, dtype=torch.float64).to(x) for x in like]


def uniform(like: Sequence[Tensor], seed: int, *key: int) -> list[Tensor]:
    """Return independent entries spread evenly over [−½, ½) in the shapes of `like`.

    >>> float(uniform([torch.zeros(1000)], 0)[0].abs().max()) <= 0.5
    True
    """
    source = _generator(seed, *key)
    return [torch.rand(tuple(x.shape), generator=source, dtype=torch.float64).sub_(0.5).to(x) for x in like]
