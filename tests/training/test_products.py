"""Layers in few bits: bit-identical at 32, close at 16, and exactly the products of rounded operands below."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from geoquant.training import LayerPrecision, adaptive
from geoquant.training.noise import Noise
from geoquant.training.numerics import level, round_rows, round_tensor
from training_nets import conv_net, image_batches, optimizer_of, same_weights, train, trained

LAYERS = {
    "linear": (nn.Linear(6, 4), (5, 6)),
    "linear on sequences": (nn.Linear(6, 4, bias=False), (2, 3, 6)),
    "linear on a vector": (nn.Linear(6, 4), (6,)),
    "conv1d": (nn.Conv1d(4, 6, 3, padding="same"), (2, 4, 9)),
    "conv2d": (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 9, 8)),
    "conv2d dilated, circular": (nn.Conv2d(2, 3, 3, padding=2, dilation=2, padding_mode="circular"), (2, 2, 7, 7)),
    "conv3d": (nn.Conv3d(2, 2, 2, bias=False), (1, 2, 4, 4, 4)),
}


def gradients(layer: nn.Module, x: torch.Tensor, weight: torch.Tensor, schedule: Any) -> list[torch.Tensor]:
    """Output, and gradients of (output · weight).sum() in input, weights and bias."""
    layer, x = copy.deepcopy(layer), x.clone().requires_grad_()
    optimizer = torch.optim.SGD(layer.parameters(), 0.0)
    with adaptive(layer, optimizer, schedule):
        y = layer(x)
        (y * weight).sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in layer.parameters())]


@pytest.fixture(params=LAYERS)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    layer, shape = LAYERS[request.param]
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator)
    return layer, x, torch.randn(layer(x).shape, generator=generator)


def test_at_32_bits_it_is_the_layer_itself(case: Any):
    exact = gradients(*case, "float32")
    layer, x, weight = case
    layer, x = copy.deepcopy(layer), x.clone().requires_grad_()
    y = layer(x)
    (y * weight).sum().backward()
    for one, other in zip([y.detach(), x.grad, *(p.grad for p in layer.parameters())], exact, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("name", "tolerance"), [("int16", 3e-4), ("bf16", 3e-2), ("fp16", 4e-3), ("int8", 6e-2)])
def test_gradients_come_close_as_bits_grow(case: Any, name: str, tolerance: float):
    exact, low = gradients(*case, "float32"), gradients(*case, f"uniform:{name}")
    for one, other in zip(exact, low, strict=True):
        error = float((one - other).norm() / one.norm())
        assert error < tolerance
    assert any(not torch.equal(one, other) for one, other in zip(exact, low, strict=True))


def test_products_are_those_of_rounded_operands():
    torch.manual_seed(0)
    layer, x, g = nn.Linear(6, 4), torch.randn(5, 6), torch.randn(5, 4)
    precision = LayerPrecision("int3", "int5", "int4")
    from geoquant.training.schedules import Static

    model, inputs = copy.deepcopy(layer), x.clone().requires_grad_()
    with adaptive(model, torch.optim.SGD(model.parameters(), 0.0), Static(precision, ""), backward="nearest"):
        y = model(inputs)
        y.backward(g)
    w = round_rows(layer.weight, level("int3"), "nearest", Noise(0))
    a = round_tensor(x, level("int5"), "nearest", Noise(0)).dequantize()
    e = round_tensor(g, level("int4"), "nearest", Noise(0)).dequantize()
    assert torch.allclose(y, F.linear(a, w, layer.bias), atol=1e-5)
    assert torch.allclose(inputs.grad, e @ w, atol=1e-5)
    assert torch.allclose(model.weight.grad, e.T @ a, atol=1e-5)
    assert torch.allclose(model.bias.grad, e.sum(0), atol=1e-5)


def test_the_weight_gradient_is_unbiased_under_stochastic_and_biased_under_nearest_rounding():
    torch.manual_seed(0)
    layer, x, g = nn.Linear(6, 4, bias=False), torch.randn(40, 6), torch.randn(40, 4) ** 3
    precision = LayerPrecision(gradients="int3", weight_gradients="int3")
    from geoquant.training.schedules import Static

    means = {}
    for how in ("stochastic", "nearest"):
        total = torch.zeros(4, 6)
        with adaptive(layer, torch.optim.SGD(layer.parameters(), 0.0), Static(precision, ""), backward=how):
            for _ in range(800):
                layer.weight.grad = None
                layer(x).backward(g)
                total += layer.weight.grad
        means[how] = (total / 800 - g.T @ x).norm() / (g.T @ x).norm()
    assert means["stochastic"] < 0.02
    assert means["nearest"] > 5 * means["stochastic"]


def test_training_at_32_bits_is_bit_identical():
    for kind in ("sgd", "adam"):
        plain = conv_net()
        train(plain, optimizer_of(plain, kind), image_batches())
        assert same_weights(plain, trained("float32", kind)[0])
        assert not same_weights(plain, trained("uniform:int8", kind)[0])


def test_frozen_weights_and_first_layers_get_what_they_need():
    model = conv_net()
    model.deep.weight.requires_grad_(False)
    with adaptive(model, optimizer_of(model), "uniform:int8"):
        F.cross_entropy(model(image_batches()[0][0]), image_batches()[0][1]).backward()
    assert model.deep.weight.grad is None
    assert model.stem.weight.grad is not None


def test_evaluation_is_in_float():
    model, x = conv_net().eval(), image_batches()[0][0]
    with torch.no_grad():
        exact = model(x)
        with adaptive(model, optimizer_of(model), "uniform:int2"):
            assert torch.equal(model(x), exact)
