"""Small nets that several rooms' tests share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SmallNet(nn.Module):
    """Conv, batch norm, in-place residual add, linear: what ResNets are made of, in 1,000 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.block = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        y = self.block(x)
        y += x
        return self.head(torch.relu(y).mean((2, 3)))


def small_net(seed: int = 0) -> SmallNet:
    """Return a `SmallNet` with lively statistics, in eval mode."""
    torch.manual_seed(seed)
    net = SmallNet()
    with torch.no_grad():
        net.norm.running_mean.uniform_(-0.2, 0.2)
        net.norm.running_var.uniform_(0.5, 1.5)
    return net.eval()


def small_batches(count: int = 3, size: int = 16, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    """Return labelled batches for `SmallNet`."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, 1, 8, 8, generator=generator), torch.randint(0, 5, (size,), generator=generator))
        for _ in range(count)
    ]


def blobs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return ten noisy blobs in twelve dimensions, and which blob each point is of."""
    centres = torch.randn(10, 12, generator=torch.Generator().manual_seed(9))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 10, (count,), generator=generator)
    return centres[labels] + 0.8 * torch.randn(count, 12, generator=generator), labels


def blob_batches(count: int = 8, size: int = 64, seed: int = 5) -> list[tuple[Tensor, Tensor]]:
    """Return labelled batches of them."""
    inputs, labels = blobs(count * size, seed)
    return list(zip(inputs.split(size), labels.split(size), strict=True))
