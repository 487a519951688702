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
from geoquant.models.zoo.mlp import MLP, mlp2_mnist, mlp3_mnist, mlp4_fashion_mnist
from geoquant.models.zoo.nets import NETS, Net, build
from geoquant.models.zoo.plain_cnn import PlainCNN, cnn4_cifar10, cnn6_svhn
from geoquant.models.zoo.resnet_cifar import CifarResNet, resnet20_cifar10
from geoquant.models.zoo.resnet_imagenet import ImageNetResNet, resnet18_cifar10, resnet18_imagenet
from geoquant.models.zoo.strided import strided_cnn3_grey, strided_cnn4_cifar10
from geoquant.models.zoo.transformer import TransformerClassifier, transformer6

__all__ = [
    "MLP",
    "NETS",
    "ZOO",
    "Builder",
    "CifarResNet",
    "ConvClassifier",
    "DigitsCNN",
    "EightBlockResNet",
    "ImageNetResNet",
    "Net",
    "PlainCNN",
    "TransformerClassifier",
    "build",
    "cnn4_cifar10",
    "cnn6_svhn",
    "digits_cnn",
    "few_bits_cnn2",
    "few_bits_cnn4",
    "few_bits_resnet",
    "mlp2_mnist",
    "mlp3_mnist",
    "mlp4_fashion_mnist",
    "resnet18_cifar10",
    "resnet18_imagenet",
    "resnet20_cifar10",
    "strided_cnn3_grey",
    "strided_cnn4_cifar10",
    "transformer6",
]
