"""Every network of the zoo builds, runs, has the published size and trains."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from geoquant.models import find_sites, inference, predict
from geoquant.models.zoo import ZOO, digits_cnn, mlp3_mnist, resnet18_imagenet, resnet20_cifar10, transformer6

INPUTS = {
    "cnn4_cifar10": torch.zeros(2, 3, 32, 32),
    "cnn6_svhn": torch.zeros(2, 3, 32, 32),
    "digits_cnn": torch.zeros(2, 1, 8, 8),
    "few_bits_cnn2": torch.zeros(2, 1, 28, 28),
    "few_bits_cnn4": torch.zeros(2, 1, 28, 28),
    "few_bits_resnet": torch.zeros(2, 3, 32, 32),
    "mlp2_mnist": torch.zeros(2, 1, 28, 28),
    "mlp3_mnist": torch.zeros(2, 1, 28, 28),
    "mlp4_fashion_mnist": torch.zeros(2, 1, 28, 28),
    "resnet18_imagenet": torch.zeros(1, 3, 64, 64),
    "resnet20_cifar10": torch.zeros(2, 3, 32, 32),
    "transformer6": torch.zeros(2, 5, dtype=torch.long),
}


@pytest.mark.parametrize("name", sorted(INPUTS))
def test_builds_and_runs(name: str) -> None:
    model = ZOO[name]()
    with inference(model):
        logits = predict(model, INPUTS[name])
    assert logits.shape[0] == len(INPUTS[name])
    assert bool(logits.isfinite().all())


def test_every_name_is_tried() -> None:
    assert ZOO.names() == sorted(INPUTS)


def test_option_a_shortcut_by_hand() -> None:
    """Every second pixel, and as many zero channels before as after (arXiv:1512.03385, section 4.2)."""
    block = resnet20_cifar10().layer2[0]
    x = torch.randn(1, 16, 8, 8)
    shortcut = block._shortcut(x)
    assert shortcut.shape == (1, 32, 4, 4)
    assert torch.equal(shortcut[:, 8:24], x[:, :, ::2, ::2])
    assert float(shortcut[:, :8].abs().sum() + shortcut[:, 24:].abs().sum()) == 0


def test_customary_names() -> None:
    names = set(resnet18_imagenet().state_dict())
    assert {"layer2.0.downsample.0.weight", "layer4.1.bn2.running_var", "fc.bias"} <= names
    assert len(names) == 122
    assert "layer1.0.downsample.0.weight" not in names
    sites = {site.name for site in find_sites(transformer6())}
    assert {f"layers.5.{part}" for part in ("attention.q", "attention.o", "feed_forward.up")} <= sites
    assert len(sites) == 6 * 6 + 3
    assert [site.shape for site in find_sites(mlp3_mnist())] == [(256, 784), (128, 256), (10, 128)]


def test_padding_does_not_reach_the_answer() -> None:
    torch.manual_seed(0)
    model = transformer6(width=16, hidden=32)
    ids = torch.randint(256, (2, 6))
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]] * 2)
    with inference(model):
        short = model(ids[:, :4])
        padded = model(ids, attention_mask=mask)
        other = model(torch.cat([ids[:, :4], (ids[:, 4:] + 1) % 256], 1), attention_mask=mask)
    torch.testing.assert_close(padded, short)
    assert torch.equal(padded, other)


def test_digits_are_learnt_in_seconds() -> None:
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16 - 0.5
    y = torch.tensor(labels)
    order = torch.randperm(len(x))
    train, test = order[:1400], order[1400:]
    model = digits_cnn()
    fit(model, x[train], y[train], epochs=8)
    with inference(model):
        accuracy = float((model(x[test]).argmax(1) == y[test]).float().mean())
    assert accuracy > 0.97


def fit(model: nn.Module, x: torch.Tensor, y: torch.Tensor, epochs: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(epochs):
        for chosen in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[chosen]), y[chosen]).backward()
            optimizer.step()
