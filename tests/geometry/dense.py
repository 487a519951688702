"""Slow and obvious references: whole Hessians and Gauss-Newton matrices in float64, and small nets to take them of."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel


class Parameters:
    """The unique parameters of a model as one flat vector."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.double().eval()
        self.items = dict(model.named_parameters())
        self.flat = torch.cat([p.detach().flatten() for p in self.items.values()])

    def span(self, name: str) -> slice:
        start = 0
        for key, parameter in self.items.items():
            if key == name:
                return slice(start, start + parameter.numel())
            start += parameter.numel()
        raise KeyError(name)

    def call(self, flat: Tensor, x: Tensor) -> Tensor:
        parts = torch.split(flat, [p.numel() for p in self.items.values()])
        values = {name: part.view(p.shape) for (name, p), part in zip(self.items.items(), parts, strict=True)}
        return functional_call(self.model, values, (x,))


def mean_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def hessian(
    parameters: Parameters, x: Tensor, targets: Tensor, loss: Callable[[Tensor, Tensor], Tensor] = mean_loss
) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return torch.autograd.functional.hessian(lambda flat: loss(parameters.call(flat, x), targets), parameters.flat)


def gauss_newton(parameters: Parameters, x: Tensor) -> Tensor:
    """JᵀH_zJ of the mean cross-entropy, row by row of the outputs."""
    with sdpa_kernel(SDPBackend.MATH):
        jacobian = torch.autograd.functional.jacobian(
            lambda flat: parameters.call(flat, x).flatten(0, -2), parameters.flat
        )
        p = parameters.call(parameters.flat, x).flatten(0, -2).softmax(-1).detach()
    curvature = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    return torch.einsum("rcp,rcd,rdq->pq", jacobian, curvature, jacobian) / len(p)


class Mixed(nn.Module):
    """Convolutions of many kinds, batch norm, in-place ReLU, a residual, pooling: piecewise affine in each weight."""

    def __init__(self, padding_mode: str = "reflect") -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.grouped = nn.Conv2d(4, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2)
        self.padded = nn.Conv2d(4, 4, 3, padding="same", padding_mode=padding_mode, bias=False)
        self.up = nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.line = nn.Conv1d(4, 3, 2)
        self.head = nn.Linear(3, 3)
        self.norm.running_mean.uniform_(-0.2, 0.2)
        self.norm.running_var.uniform_(0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.norm(self.stem(x)))
        x = F.relu_(self.grouped(x))
        x = x + F.leaky_relu(self.padded(x), 0.1)
        x = F.max_pool2d(F.relu(self.up(x)), 2)
        x = F.relu(self.line(x.flatten(2)))
        return self.head(x.mean(-1))


class Attending(nn.Module):
    """Embedding, attention, layer norm, GELU, a head tied to the embedding."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.mix = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm = nn.LayerNorm(4)
        self.up = nn.Linear(4, 5)
        self.down = nn.Linear(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = self.norm(x + self.mix(x, x, x, need_weights=False)[0])
        return self.head(x + self.down(F.gelu(self.up(x))))


class Twice(nn.Module):
    """One linear layer used twice: the outputs are curved in its weight though every operation is affine."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(3, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.shared(F.relu(self.shared(x)))))


def smooth_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.SiLU(), nn.Linear(4, 3)).double()


def relu_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)).double()
