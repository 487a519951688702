"""Training steps of the same net, timed in turn. Needs nothing but torch, so that peers' environments can run it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import nn

Step = Callable[[], None]


def training_step(model: nn.Module, batch: int, seed: int = 0) -> Step:
    """Return one step of AdamW on random images of CIFAR's size, channels last."""
    model = model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(batch, 3, 32, 32, generator=generator).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch,), generator=generator)
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()

    return step


def alternate(steps: Mapping[str, Step], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each step, one after another in each round; two rounds before do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn >= 2:
                seconds[name].append(time.perf_counter() - start)
    return seconds
