"""Plain definitions of the networks that demos, tests and studies use, one file a family."""

from geoquant.models.zoo.catalogue import ZOO, Builder
from geoquant.models.zoo.digits import DigitsCNN, digits_cnn
from geoquant.models.zoo.few_bits import (
    ConvClassifier,
    EightBlockResNet,
    few_bits_cnn2,
    few_bits_cnn4,
    few_bits_resnet,
)
from geoquant.models.zoo.mlp import MLP, mlp3_mnist
from geoquant.models.zoo.resnet_cifar import CifarResNet, resnet20_cifar10
from geoquant.models.zoo.resnet_imagenet import ImageNetResNet, resnet18_imagenet
from geoquant.models.zoo.transformer import TransformerClassifier, transformer6

__all__ = [
    "MLP",
    "ZOO",
    "Builder",
    "CifarResNet",
    "ConvClassifier",
    "DigitsCNN",
    "EightBlockResNet",
    "ImageNetResNet",
    "TransformerClassifier",
    "digits_cnn",
    "few_bits_cnn2",
    "few_bits_cnn4",
    "few_bits_resnet",
    "mlp3_mnist",
    "resnet18_imagenet",
    "resnet20_cifar10",
    "transformer6",
]
