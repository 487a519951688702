"""Nets and loops that the training room's tests share."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geoquant.training import adaptive


class ConvNet(nn.Module):
    """Conv, strided grouped conv, batch norm, linear: 500 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.deep = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.norm(self.deep(x)))
        return self.head(x.flatten(1))


def conv_net(seed: int = 0) -> ConvNet:
    torch.manual_seed(seed)
    return ConvNet()


def image_batches(count: int = 6, size: int = 12, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    images = [torch.randn(size, 1, 8, 8, generator=generator) for _ in range(count)]
    return [(x, (x[:, 0].mean((1, 2)) * 9).round().long().clamp(-1, 1) + 1) for x in images]


def optimizer_of(model: nn.Module, kind: str = "sgd") -> torch.optim.Optimizer:
    if kind == "adam":
        return torch.optim.Adam(model.parameters(), 1e-2)
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, batches: Any) -> list[float]:
    """An ordinary loop; return the losses."""
    losses = []
    for inputs, labels in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def trained(schedule: Any, kind: str = "sgd", batches: Any = None, **options: Any) -> tuple[nn.Module, Any]:
    """A fresh net after one pass over the batches in the schedule's bits, and what watched it."""
    model = conv_net()
    optimizer = optimizer_of(model, kind)
    with adaptive(model, optimizer, schedule, **options) as precision:
        train(model, optimizer, image_batches() if batches is None else batches)
    return model, precision


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
