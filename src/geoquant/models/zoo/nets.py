"""Which nets do the sources use, under what name here, and how large are they?

Two sources call a net CNN-4, one counts its MLP-4 wrongly, and one's ResNet-8 has eight residual blocks, hence 17
convolutions: so every net has one name of its own, and its widths and parameters are stated and tested.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from geoquant.models.zoo.catalogue import ZOO

_ALLOCATION = "Curvature-Guided Bit Allocation"
_TRANSFORMER = "Curvature-Guided Transformer Quantization"
_TRAINING = "End-to-End QAT via Numerical Geometry"
_RESNETS = "arXiv:1512.03385"
_OURS = "geoquant"


@dataclass(frozen=True)
class Net:
    """What is known of a net of the zoo.

    Attributes:
        name: under which `ZOO` builds it.
        called: its name in its source.
        source: a heading of docs/sources.md, or a paper.
        data: the set that it is trained on; empty where it only serves for sizes.
        shape: of one input, without the batch; of token ids, their number.
        widths: values or channels that enter, then what comes out of every layer with weights, in the order of sites.
        parameters: all of them, biases and norms too.
        note: where this differs from the source, or leaves open what it says.
    """

    name: str
    called: str
    source: str
    data: str
    shape: tuple[int, ...]
    widths: tuple[int, ...]
    parameters: int
    note: str = ""


def _stages(*widths: int, blocks: int = 2) -> tuple[int, ...]:
    """Return the widths of stages of residual blocks, two convolutions each."""
    return tuple(width for width in widths for _ in range(2 * blocks))


def _resnet18(classes: int) -> tuple[int, ...]:
    """Return its widths: stem, four stages, of which all but the first begin with a shortcut of its own, and head."""
    later = (width for width in (128, 256, 512) for width in [width] * 5)
    return (3, 64, *[64] * 4, *later, classes)


_ENCODER = (256, 128, 128, *(6 * (128, 128, 128, 128, 512, 128)), 2)

NETS: dict[str, Net] = {
    net.name: net
    for net in (
        Net("mlp2_mnist", "MLP-2", _ALLOCATION, "mnist", (1, 28, 28), (784, 256, 10), 203_530),
        Net(
            "mlp4_fashion_mnist",
            "MLP-4",
            _ALLOCATION,
            "fashion_mnist",
            (1, 28, 28),
            (784, 512, 256, 128, 10),
            567_434,
            "the source counts 533 thousand; its widths make 567 thousand",
        ),
        Net(
            "cnn4_cifar10",
            "CNN-4",
            _ALLOCATION,
            "cifar10",
            (3, 32, 32),
            (3, 56, 112, 224, 448, 10),
            1_205_690,
            "the source gives 1.2 million parameters and no widths",
        ),
        Net(
            "cnn6_svhn",
            "CNN-6",
            _ALLOCATION,
            "svhn",
            (3, 32, 32),
            (3, 96, 96, 192, 192, 400, 416, 10),
            2_790_042,
            "the source gives 2.8 million parameters and no widths",
        ),
        Net(
            "mlp3_mnist",
            "3-layer MLP",
            _TRANSFORMER,
            "mnist",
            (1, 28, 28),
            (784, 256, 128, 10),
            235_146,
            "the source gives three layers and no widths",
        ),
        Net("resnet18_imagenet", "ResNet-18", _TRANSFORMER, "", (3, 224, 224), _resnet18(1000), 11_689_512),
        Net(
            "resnet18_cifar10",
            "ResNet-18",
            _TRANSFORMER,
            "cifar10",
            (3, 32, 32),
            _resnet18(10),
            11_173_962,
            "the stem keeps the size of the image, as is the custom for CIFAR-10",
        ),
        Net(
            "transformer6",
            "6-layer Transformer",
            _TRANSFORMER,
            "",
            (128,),
            _ENCODER,
            1_239_298,
            "the source gives six layers and no widths; this one reads bytes",
        ),
        Net(
            "few_bits_cnn2",
            "CNN-2",
            _TRAINING,
            "mnist",
            (1, 28, 28),
            (1, 16, 32, 64, 10),
            105_866,
            "the source gives two convolutions, two linear layers and at most 500 thousand parameters",
        ),
        Net(
            "few_bits_cnn4",
            "CNN-4",
            _TRAINING,
            "fashion_mnist",
            (1, 28, 28),
            (1, 16, 16, 32, 32, 128, 10),
            218_490,
            "the source gives four convolutions, two linear layers and at most 500 thousand parameters",
        ),
        Net(
            "few_bits_resnet",
            "ResNet-8",
            _TRAINING,
            "cifar10",
            (3, 32, 32),
            (3, 12, *_stages(12, 24, 48, 96), 10),
            388_966,
            "eight residual blocks, hence 17 convolutions; the usual ResNet-8 has three blocks",
        ),
        Net(
            "resnet20_cifar10",
            "ResNet-20",
            _RESNETS,
            "cifar10",
            (3, 32, 32),
            (3, 16, *_stages(16, 32, 64, blocks=3), 10),
            269_722,
        ),
        Net(
            "strided_cnn4_cifar10",
            "strided CNN-4",
            _OURS,
            "cifar10",
            (3, 32, 32),
            (3, 16, 32, 64, 64, 10),
            70_762,
            "for bounds: convolutions and ReLU alone",
        ),
        Net("strided_cnn3_grey", "strided CNN-3", _OURS, "mnist", (1, 28, 28), (1, 8, 16, 16, 10), 6_178),
        Net("digits_cnn", "digits CNN", _OURS, "digits", (1, 8, 8), (1, 16, 32, 32, 32, 10), 18_586),
    )
}


def build(name: str, seed: int) -> nn.Module:
    """Build a net of the zoo with weights drawn from `seed`; the caller's own draws go on as before.

    Raises:
        UnknownNameError: the zoo has no such net.

    >>> torch.equal(build("digits_cnn", 1).head.weight, build("digits_cnn", 1).head.weight)
    True
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ZOO[name]()
