"""Bit-operations against hand counts and torch's own counter."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from geoquant.training import LayerPrecision, adaptive
from geoquant.training.schedules import Static
from training_nets import conv_net, image_batches, optimizer_of, train, trained


def test_a_linear_layer_by_hand():
    layer, x = nn.Linear(6, 4), torch.randn(5, 6, requires_grad=True)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9)
    precision = LayerPrecision("int4", "int6", "int8", "fp32", "bf16", "fp32")
    with adaptive(layer, optimizer, Static(precision, "")) as run:
        layer(x).sum().backward()
        optimizer.step()
    found, product = run.operations, 2 * 5 * 6 * 4
    assert found.flops == {
        "forward": product, "backward_input": product, "backward_weight": product, "optimizer": 4 * 24,
    }  # fmt: skip
    assert found.single == {
        "forward": product * 6, "backward_input": product * 8, "backward_weight": product * 8, "optimizer": 96 * 32,
    }  # fmt: skip
    assert found.product == {
        "forward": product * 4 * 6,
        "backward_input": product * 8 * 4,
        "backward_weight": product * 8 * 6,
        "optimizer": 96 * 16 * 32,
    }
    assert run.bytes == {"state": 24 * (16 + 32) // 8, "activations": 30 * 6 // 8}


def test_a_convolution_by_hand():
    layer = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    with adaptive(layer, optimizer_of(layer), "uniform:int4") as run:
        layer(torch.randn(3, 4, 8, 8)).sum().backward()  # nobody needs the gradient of the input
    product = 2 * 3 * (4 * 4) * 6 * (4 // 2) * 9
    assert run.operations.flops == {
        "forward": product, "backward_input": 0, "backward_weight": product, "optimizer": 0,
    }  # fmt: skip
    assert run.operations.average_bits == 4


@pytest.mark.parametrize("schedule", ["float32", "uniform:int4"])
def test_the_sums_are_those_of_torchs_counter(schedule: str):
    model, (inputs, labels) = conv_net(), image_batches()[0]
    # torch counts the weight gradient of a grouped convolution as if it had one group.
    model.deep = nn.Conv2d(4, 8, 3, stride=2, padding=1)
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(inputs), labels).backward()
    with adaptive(model, optimizer_of(model), schedule) as run:
        F.cross_entropy(model(inputs), labels).backward()
    assert sum(run.operations.flops.values()) == counter.get_total_flops()


def test_evaluation_and_measurements_are_not_counted():
    _, run = trained("float32")
    model = conv_net()
    optimizer = optimizer_of(model)
    with adaptive(model, optimizer, "float32") as other:
        train(model, optimizer, image_batches())
        with torch.no_grad():
            model(image_batches()[0][0])
        with other.float32():
            F.cross_entropy(model(image_batches()[0][0]), image_batches()[0][1]).backward()
    assert other.operations == run.operations


def test_uniform_bits_scale_both_conventions():
    one, other = trained("float32")[1].operations, trained("uniform:int8")[1].operations
    for part in ("forward", "backward_input", "backward_weight"):
        assert one.single[part] == 4 * other.single[part]
        assert one.product[part] == 16 * other.product[part]
    assert one.single["optimizer"] == other.single["optimizer"]
