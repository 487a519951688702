"""A small net that has learned something, and the data it learned from."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.nets import SmallNet, small_net
from torch import Tensor

from geoquant.training import fit_classifier_

Pair = tuple[Tensor, Tensor]


def prototypes(count: int, seed: int) -> Pair:
    """Return images of five kinds under noise, and their kinds."""
    kinds = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (count,), generator=generator)
    return kinds[labels] + 0.7 * torch.randn(count, 1, 8, 8, generator=generator), labels


@pytest.fixture(scope="session")
def trained() -> SmallNet:
    net = small_net()
    inputs, labels = prototypes(640, 1)
    fit_classifier_(net, inputs, labels, epochs=8, seed=0, batch_size=64, learning_rate=2e-2)
    return net


@pytest.fixture
def net(trained: SmallNet) -> SmallNet:
    return copy.deepcopy(trained)


@pytest.fixture(scope="session")
def batches() -> list[Pair]:
    inputs, labels = prototypes(256, 2)
    return list(zip(inputs.split(32), labels.split(32), strict=True))
