"""Convolutions, pooling and one linear layer for photographs of 32×32 pixels: CNN-4 and CNN-6.

Their kinds and numbers of weights (1.2 and 2.8 million) come from docs/sources.md, "Curvature-Guided Bit Allocation";
their widths are ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from geoquant.models.zoo.catalogue import ZOO


class PlainCNN(nn.Module):
    """3×3 convolutions with ReLU, some followed by pooling, then a linear layer, for images (N, 3, 32, 32).

    Args:
        widths: channels of each convolution.
        pooled: after which convolutions (counted from 0) the image is halved; four times in all.
        classes: of the logits.
    """

    def __init__(self, widths: Sequence[int], pooled: Sequence[int], classes: int = 10) -> None:
        super().__init__()
        inputs = (3, *widths[:-1])
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(inputs, widths, strict=True))
        self.pooled = frozenset(pooled)
        self.linear = nn.Linear(widths[-1] * 4, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, 32, 32) to logits (N, classes)."""
        for place, conv in enumerate(self.convs):
            x = conv(x).relu()
            if place in self.pooled:
                x = F.max_pool2d(x, 2)
        return self.linear(x.flatten(1))  # type: ignore[no-any-return]


@ZOO.add("cnn4_cifar10")
def cnn4_cifar10() -> PlainCNN:
    """Build the CNN-4 for CIFAR-10.

    >>> sum(p.numel() for p in cnn4_cifar10().parameters())
    1205690
    """
    return PlainCNN((56, 112, 224, 448), (0, 1, 2, 3))


@ZOO.add("cnn6_svhn")
def cnn6_svhn() -> PlainCNN:
    """Build the CNN-6 for SVHN.

    >>> sum(p.numel() for p in cnn6_svhn().parameters())
    2790042
    """
    return PlainCNN((96, 96, 192, 192, 400, 416), (0, 1, 3, 5))
