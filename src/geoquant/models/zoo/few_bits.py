"""The networks that training in few bits is tried on: CNN-2, CNN-4 and a residual network of eight blocks.

Their kinds, and a bound of 500,000 weights, come from docs/sources.md, "End-to-End QAT via Numerical Geometry"; their
widths are ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from geoquant.models.zoo.catalogue import ZOO
from geoquant.models.zoo.resnet_cifar import CifarBlock


class ConvClassifier(nn.Module):
    """3×3 convolutions with ReLU, some followed by pooling, then two linear layers, for grey images (N, 1, 28, 28).

    Args:
        widths: channels of each convolution.
        pooled: after which convolutions (counted from 0) the image is halved; twice in all.
        hidden: width between the linear layers.
    """

    def __init__(self, widths: Sequence[int], pooled: Sequence[int], hidden: int) -> None:
        super().__init__()
        inputs = (1, *widths[:-1])
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(inputs, widths, strict=True))
        self.pooled = frozenset(pooled)
        self.fc1 = nn.Linear(widths[-1] * 49, hidden)
        self.fc2 = nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 1, 28, 28) to logits (N, 10)."""
        for place, conv in enumerate(self.convs):
            x = conv(x).relu()
            if place in self.pooled:
                x = F.max_pool2d(x, 2)
        return self.fc2(self.fc1(x.flatten(1)).relu())  # type: ignore[no-any-return]


class EightBlockResNet(nn.Module):
    """A stem and eight residual blocks of two convolutions, two in each of four stages, for images (N, 3, 32, 32)."""

    def __init__(self, width: int = 12, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        widths = (width, width, 2 * width, 2 * width, 4 * width, 4 * width, 8 * width, 8 * width)
        before = (width, *widths[:-1])
        self.blocks = nn.Sequential(
            *(CifarBlock(a, b, 1 if a == b else 2) for a, b in zip(before, widths, strict=True))
        )
        self.linear = nn.Linear(8 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, 32, 32) to logits (N, classes)."""
        x = self.blocks(F.relu(self.bn1(self.conv1(x))))
        return self.linear(x.mean((2, 3)))  # type: ignore[no-any-return]


@ZOO.add("few_bits_cnn2")
def few_bits_cnn2() -> ConvClassifier:
    """Build CNN-2 for MNIST: two convolutions, two linear layers.

    >>> sum(p.numel() for p in few_bits_cnn2().parameters())
    105866
    """
    return ConvClassifier((16, 32), (0, 1), 64)


@ZOO.add("few_bits_cnn4")
def few_bits_cnn4() -> ConvClassifier:
    """Build CNN-4 for Fashion-MNIST: four convolutions, two linear layers.

    >>> sum(p.numel() for p in few_bits_cnn4().parameters())
    218490
    """
    return ConvClassifier((16, 16, 32, 32), (1, 3), 128)


@ZOO.add("few_bits_resnet")
def few_bits_resnet() -> EightBlockResNet:
    """Build the residual network of eight blocks for CIFAR-10.

    >>> sum(p.numel() for p in few_bits_resnet().parameters())
    388966
    """
    return EightBlockResNet()
