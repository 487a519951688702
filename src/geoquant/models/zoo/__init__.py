"""Plain definitions of the networks that demos, tests and studies use, one file a family."""

from geoquant.models.zoo.catalogue import ZOO, Builder
from geoquant.models.zoo.digits import DigitsCNN, digits_cnn
from geoquant.models.zoo.mlp import MLP, mlp3_mnist
from geoquant.models.zoo.resnet_cifar import CifarResNet, resnet20_cifar10
from geoquant.models.zoo.resnet_imagenet import ImageNetResNet, resnet18_imagenet
from geoquant.models.zoo.transformer import TransformerClassifier, transformer6

__all__ = [
    "MLP",
    "ZOO",
    "Builder",
    "CifarResNet",
    "DigitsCNN",
    "ImageNetResNet",
    "TransformerClassifier",
    "digits_cnn",
    "mlp3_mnist",
    "resnet18_imagenet",
    "resnet20_cifar10",
    "transformer6",
]
