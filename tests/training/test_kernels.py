"""Products on real units against the simulation: on the CPU with the same calls, on a GPU where there is one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from geoquant.training import adaptive, kernels

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]
# Half types round their result, so they differ from the simulation by their own precision.
TOLERANCE = {"int8": 1e-6, "fp8_e4m3": 1e-6, "fp16": 2e-3, "bf16": 2e-2}


def codes(name: str, shape: tuple[int, int], unsigned: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    if name == "int8":
        return torch.randint(0 if unsigned else -127, 256 if unsigned else 128, shape, generator=generator).float()
    x = torch.randn(shape, generator=generator)
    types: dict[str, Any] = {"fp8_e4m3": torch.float8_e4m3fn, "fp16": torch.float16, "bf16": torch.bfloat16}
    return x.to(types[name]).float()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 7, 3), (33, 16, 8), (64, 100, 10)])
@pytest.mark.parametrize("name", TOLERANCE)
def test_a_unit_gives_the_product(name: str, shape: tuple[int, int, int], unsigned: bool, device: str):
    m, k, n = shape
    a, b = codes(name, (m, k), unsigned).to(device), codes(name, (k, n)).to(device)
    exact = (a.double() @ b.double()).float()
    found = kernels.matmul(a, b, name)
    assert found.shape == exact.shape
    assert found.dtype == torch.float32
    assert float((found - exact).norm()) <= TOLERANCE[name] * float(exact.norm()) + 1e-6
    if name == "int8":
        assert torch.equal(found, exact)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("name", TOLERANCE)
def test_a_layer_on_units_is_the_simulated_layer(
    name: str, kind: str, relu: bool, device: str, monkeypatch: pytest.MonkeyPatch
):
    torch.manual_seed(0)
    made, shape = (nn.Linear(20, 12), (9, 20)) if kind == "linear" else (nn.Conv2d(3, 5, 3, 2, 1), (2, 3, 8, 8))
    x = torch.randn(shape)
    x, found = x.relu() if relu else x, {}
    for real in (False, True):
        monkeypatch.setattr(kernels, "usable", lambda *_, real=real: real)
        layer, inputs = copy.deepcopy(made).to(device), x.to(device).clone().requires_grad_()
        with adaptive(layer, torch.optim.SGD(layer.parameters(), 0.1), f"uniform:{name}"):
            y = layer(inputs)
            (y * torch.linspace(-1, 1, y.numel(), device=device).view(y.shape)).sum().backward()
        found[real] = [y.detach(), inputs.grad, *(p.grad for p in layer.parameters())]
    for simulated, real_one in zip(found[False], found[True], strict=True):
        assert float((simulated - real_one).norm()) <= TOLERANCE[name] * float(simulated.norm())


def test_units_are_chosen_by_device_and_level():
    assert not any(kernels.usable(name, torch.device("cpu")) for name in TOLERANCE)
    if torch.cuda.is_available():
        assert kernels.usable("bf16", torch.device("cuda")) is (torch.cuda.get_device_capability(0) >= (8, 0))
    assert not kernels.usable("int4", torch.device("cuda"))
