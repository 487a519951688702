"""Residual networks for 224×224 images of He et al. 2015 (arXiv:1512.03385, table 1), and their custom for 32×32.

State-dict names are the customary ones (``layer1.0.conv1.weight``, ``layer2.0.downsample.0.weight``,
``fc.weight``), so weights that carry them load.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from geoquant.models.zoo.catalogue import ZOO


class ImageNetBlock(nn.Module):
    """Two 3×3 convolutions with batch norm around a shortcut (a 1×1 convolution where the shape changes)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)  # type: ignore[no-any-return]


class ImageNetResNet(nn.Module):
    """A stem, four stages of basic blocks, each twice as wide as the one before, and a linear head.

    Args:
        blocks: of each stage.
        classes: of the logits.
        width: channels of the stem and the first stage.
        small: a stem for images of 32×32, one 3×3 convolution that keeps their size, as is the custom for CIFAR-10.
    """

    def __init__(
        self, blocks: Sequence[int] = (2, 2, 2, 2), classes: int = 1000, width: int = 64, small: bool = False
    ) -> None:
        super().__init__()
        kernel, stride, padding = (3, 1, 1) if small else (7, 2, 3)
        self.conv1 = nn.Conv2d(3, width, kernel, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(width, width, 1, blocks[0])
        self.layer2 = _stage(width, 2 * width, 2, blocks[1])
        self.layer3 = _stage(2 * width, 4 * width, 2, blocks[2])
        self.layer4 = _stage(4 * width, 8 * width, 2, blocks[3])
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to logits (N, classes)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))  # type: ignore[no-any-return]


def _stage(inputs: int, outputs: int, stride: int, blocks: int) -> nn.Sequential:
    first = ImageNetBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(ImageNetBlock(outputs, outputs, 1) for _ in range(blocks - 1)))


@ZOO.add("resnet18_imagenet")
def resnet18_imagenet(classes: int = 1000) -> ImageNetResNet:
    """Build the ResNet-18 for ImageNet.

    >>> sum(p.numel() for p in resnet18_imagenet().parameters())
    11689512
    """
    return ImageNetResNet((2, 2, 2, 2), classes)


@ZOO.add("resnet18_cifar10")
def resnet18_cifar10(width: int = 64, classes: int = 10) -> ImageNetResNet:
    """Build the ResNet-18 for CIFAR-10; a quarter of its width takes a sixteenth of the time.

    >>> sum(p.numel() for p in resnet18_cifar10().parameters())
    11173962
    >>> sum(p.numel() for p in resnet18_cifar10(width=16).parameters())
    701466
    """
    return ImageNetResNet((2, 2, 2, 2), classes, width, small=True)
