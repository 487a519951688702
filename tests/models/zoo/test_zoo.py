"""Every network of the zoo builds, runs, has the published size and trains."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from geoquant.models import find_sites, get_weight, inference, predict
from geoquant.models.zoo import (
    NETS,
    ZOO,
    build,
    digits_cnn,
    mlp3_mnist,
    resnet18_imagenet,
    resnet20_cifar10,
    transformer6,
)


@pytest.mark.parametrize("name", sorted(NETS))
def test_builds_and_runs_and_is_what_it_is_said_to_be(name: str) -> None:
    said, model = NETS[name], build(name, 0)
    inputs = torch.zeros(1, *said.shape, dtype=torch.long if len(said.shape) == 1 else torch.float32)
    with inference(model):
        logits = predict(model, inputs)
    assert logits.shape == (1, said.widths[-1])
    assert bool(logits.isfinite().all())
    assert sum(p.numel() for p in model.parameters()) == said.parameters
    sites = find_sites(model)
    first = get_weight(model, sites[0])
    assert said.widths == (first.shape[1 if name != "transformer6" else 0], *outputs(model))


def outputs(model: nn.Module) -> list[int]:
    """Rows of the weights of layers, width of embeddings."""
    modules = dict(model.named_modules())
    return [get_weight(model, site).shape[isinstance(modules[site.name], nn.Embedding)] for site in find_sites(model)]


def test_every_net_is_described_under_a_name_of_its_own() -> None:
    assert ZOO.names() == sorted(NETS)
    called = [(net.called, net.data) for net in NETS.values()]
    assert len(set(called)) == len(called)
    assert {net.name for net in NETS.values() if net.called == "CNN-4"} == {"cnn4_cifar10", "few_bits_cnn4"}


@pytest.mark.parametrize(
    ("name", "stated"),
    [
        ("mlp2_mnist", 203_000),
        ("mlp4_fashion_mnist", 567_000),  # the source says 533 thousand, which no reading of its widths gives
        ("cnn4_cifar10", 1_200_000),
        ("cnn6_svhn", 2_800_000),
        ("resnet18_imagenet", 11_700_000),
    ],
)
def test_sizes_are_those_of_the_sources(name: str, stated: int) -> None:
    assert NETS[name].parameters == pytest.approx(stated, rel=0.005)


def test_nets_to_train_in_few_bits_keep_their_source_s_bound() -> None:
    sizes = [net.parameters for net in NETS.values() if net.name.startswith("few_bits")]
    assert len(sizes) == 3
    assert max(sizes) < 500_000


def test_the_residual_net_for_few_bits_has_eight_blocks() -> None:
    model = build("few_bits_resnet", 0)
    assert len(model.blocks) == 8
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == 17


def test_seeds_make_the_weights_and_leave_the_generator() -> None:
    state = torch.random.get_rng_state()
    one, same, other = (build("mlp2_mnist", seed).layers[0].weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(state, torch.random.get_rng_state())


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
