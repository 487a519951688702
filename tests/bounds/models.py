"""Small networks of every covered kind, and their perturbed twins."""

from __future__ import annotations

import copy
import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """Convolutions, batch norm, an option-A shortcut (slice and pad), a mean and a linear head."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.head = nn.Linear(2 * width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        half = self.conv1.out_channels // 2
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, half))
        x = self.bn2(self.conv2(x))
        x += shortcut
        return self.head(F.relu(x).mean((2, 3)))


class Pooled(nn.Module):
    """Max and average pools, a concatenation, an in-place ReLU, a clipped ReLU and a leaky one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.branch = nn.Conv2d(3, 2, 3, padding=1, groups=1)
        self.head = nn.Linear(5, 2)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.conv(x))
        x = F.max_pool2d(x, 3, 2, 1)
        x = torch.cat([x, F.leaky_relu(self.branch(x), 0.1)], 1)
        x = F.avg_pool2d(F.hardtanh(x, -0.5, 0.75), 2)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Rearranged(nn.Module):
    """Permutations, views, repeated features, differences and constant factors, with a buffer that normalises."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor([0.1, -0.2, 0.3]))
        self.first, self.second = nn.Linear(6, 8), nn.Linear(16, 3)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        x = ((x - self.shift) / 0.7).permute(0, 2, 1).reshape(x.size(0), -1)
        x = F.relu6(self.first(x) * self.scale) - 0.5 * F.relu(-self.first(x))
        x = x.unsqueeze(1).expand(-1, 2, -1).reshape(x.size(0), -1)
        return 1 - self.second(x).view(-1, 3)


class Attention(nn.Module):
    """A pre-norm encoder layer on token ids."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, F.gelu, batch_first=True, norm_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(self.embedding(tokens)).mean(1))


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with ReLUs between."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def settled(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give batch norms statistics and gains that a trained net could have; return the model in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.3, 2.0),
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.3, 0.3),
            ):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    return model.eval()


def perturbed(model: nn.Module, size: float, seed: int = 0) -> nn.Module:
    """Return a copy whose every parameter is off by up to `size` of its largest entry."""
    twin = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in twin.parameters():
            noise = torch.rand(parameter.shape, generator=generator) * 2 - 1
            parameter += size * noise * parameter.abs().max()
    return twin


def seeded(make: type[nn.Module] | None = None, *widths: int, seed: int = 0) -> nn.Module:
    """Build a model from a seed, in eval mode with settled statistics."""
    torch.manual_seed(seed)
    return settled(mlp(*widths) if make is None else make(), seed)
