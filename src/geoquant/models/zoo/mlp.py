"""Multilayer perceptrons with ReLU, named by their widths."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from geoquant.models.zoo.catalogue import ZOO


class MLP(nn.Module):
    """Linear layers of `widths` (inputs first, classes last) with ReLU between; inputs are flattened."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(inputs, outputs) for inputs, outputs in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, ...) with ``widths[0]`` values a sample to logits (N, ``widths[-1]``)."""
        x = x.flatten(1)
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)  # type: ignore[no-any-return]


@ZOO.add("mlp3_mnist")
def mlp3_mnist() -> MLP:
    """Build the 3-layer perceptron 784-256-128-10 for MNIST ("Curvature-Guided Transformer Quantization").

    >>> sum(p.numel() for p in mlp3_mnist().parameters())
    235146
    """
    return MLP((784, 256, 128, 10))


@ZOO.add("mlp2_mnist")
def mlp2_mnist() -> MLP:
    """Build the MLP-2, 784-256-10, for MNIST ("Curvature-Guided Bit Allocation").

    >>> sum(p.numel() for p in mlp2_mnist().parameters())
    203530
    """
    return MLP((784, 256, 10))


@ZOO.add("mlp4_fashion_mnist")
def mlp4_fashion_mnist() -> MLP:
    """Build the MLP-4, 784-512-256-128-10, for Fashion-MNIST ("Curvature-Guided Bit Allocation").

    Its source counts 533 thousand weights; these widths make 567 thousand.

    >>> sum(p.numel() for p in mlp4_fashion_mnist().parameters())
    567434
    """
    return MLP((784, 512, 256, 128, 10))
