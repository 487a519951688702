"""Small convolutional nets that halve the image by strides and end in one linear layer, without pooling.

Piecewise linear where they have no batch norm, so bounds follow them; and trained in minutes on a laptop.
"""

from __future__ import annotations

from torch import nn

from geoquant.models.zoo.catalogue import ZOO


@ZOO.add("strided_cnn4_cifar10")
def strided_cnn4_cifar10() -> nn.Sequential:
    """Build four convolutions and a head for images (N, 3, 32, 32).

    >>> sum(p.numel() for p in strided_cnn4_cifar10().parameters())
    70762
    """
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((3, 16, 1), (16, 32, 2), (32, 64, 2), (64, 64, 2)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, 10))


@ZOO.add("strided_cnn3_grey")
def strided_cnn3_grey() -> nn.Sequential:
    """Build three convolutions with batch norm and a linear layer for grey images (N, 1, 28, 28).

    >>> sum(p.numel() for p in strided_cnn3_grey().parameters())
    6178
    """
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 8), (8, 16), (16, 16)):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 10))
