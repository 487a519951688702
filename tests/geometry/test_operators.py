"""Operator norms against the singular values of matrices written out in full."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from geoquant.errors import ModelError
from geoquant.geometry import operators
from geoquant.geometry.operators import linear_map, spectral_norm, spectral_norm_bound

LAYERS = {
    "same": (nn.Conv2d(3, 4, 3, padding=1), (3, 6, 5)),
    "strided": (nn.Conv2d(2, 5, (3, 2), stride=(2, 3), padding=(1, 0), bias=False), (2, 7, 8)),
    "dilated grouped": (nn.Conv2d(4, 6, 3, dilation=2, groups=2, padding="same"), (4, 6, 6)),
    "circular": (nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), (2, 4, 4)),
    "reflect": (nn.Conv1d(2, 3, 5, padding=2, padding_mode="reflect"), (2, 6)),
    "one axis": (nn.Conv1d(3, 2, 4, stride=2), (3, 11)),
    "three axes": (nn.Conv3d(1, 2, 2, stride=(1, 2, 1)), (1, 3, 4, 3)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), (4, 3, 4)),
    "transposed dilated": (nn.ConvTranspose1d(2, 3, 3, stride=3, dilation=2), (2, 5)),
    "linear": (nn.Linear(7, 4), (7,)),
}


def _written_out(layer: nn.Module, shape: tuple[int, ...]) -> torch.Tensor:
    """The Jacobian by autograd, which knows nothing of convolutions."""
    jacobian = torch.autograd.functional.jacobian(lambda x: layer(x.unsqueeze(0))[0].flatten(), torch.zeros(shape))
    return jacobian.flatten(1).double()


@pytest.mark.parametrize("name", LAYERS)
def test_exact_iterated_and_bounded_norms_of_the_real_operator(name, monkeypatch):
    layer, shape = LAYERS[name]
    truth = float(torch.linalg.svdvals(_written_out(layer, shape))[0])
    exact = spectral_norm(layer, shape)
    assert exact.exact
    assert exact.value == pytest.approx(truth, rel=1e-5)
    monkeypatch.setattr(operators, "_DENSE", 0)
    iterated = spectral_norm(layer, shape, tolerance=1e-8)
    assert not iterated.exact
    assert iterated.value == pytest.approx(exact.value, rel=1e-9)
    assert iterated.value <= exact.value * (1 + 1e-12)
    bound = spectral_norm_bound(layer, shape).value
    assert exact.value <= bound <= 2.5 * exact.value


@pytest.mark.parametrize("name", LAYERS)
def test_the_adjoint_is_the_transpose(name):
    layer, shape = LAYERS[name]
    found = linear_map(layer, shape)
    x = torch.randn(2, *shape, dtype=torch.float64)
    y = torch.randn(2, *found.output_shape, dtype=torch.float64)
    assert float((found.forward(x) * y).sum()) == pytest.approx(float((x * found.adjoint(y)).sum()), rel=1e-9)


def test_the_reshaped_kernel_is_not_the_operator():
    layer = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.ones_(layer.weight)  # a blur: constant images grow by nearly nine
    reshaped = spectral_norm(layer.weight.view(1, 9)).value
    real = spectral_norm(layer, (1, 32, 32)).value
    assert reshaped == pytest.approx(3.0)
    assert 8.9 < real < 9.0
    assert spectral_norm_bound(layer, (1, 32, 32)).value == pytest.approx(9.0)
    assert real <= math.sqrt(9) * reshaped  # the bound √(k_h k_w)·σ, nearly attained


def test_the_bound_is_tight_for_strided_layers_on_large_images():
    layer = nn.Conv1d(2, 3, 3, stride=2, padding=1)
    assert spectral_norm_bound(layer, (2, 400)).value <= 1.001 * spectral_norm(layer, (2, 400)).value


def test_pooling_and_batch_norm_are_operators_too():
    assert spectral_norm(nn.AvgPool2d(2), (1, 4, 4)).value == pytest.approx(0.5)
    norm = nn.BatchNorm2d(2).eval()
    norm.running_var.copy_(torch.tensor([0.25, 4.0]))
    assert spectral_norm(norm, (2, 3, 3)).value == pytest.approx(1 / math.sqrt(0.25 + norm.eps), rel=1e-6)


def test_unconverged_iterations_say_so(monkeypatch):
    monkeypatch.setattr(operators, "_DENSE", 0)
    torch.manual_seed(0)
    matrix = torch.diag(torch.linspace(0.99, 1.0, 200))
    found = spectral_norm(matrix, max_steps=3)
    assert "not converged" in found.note
    assert found.value < 1.0 <= found.value + found.residual


def test_bad_layers_say_what_is_wrong():
    with pytest.raises(ModelError, match="input_shape"):
        spectral_norm(nn.Conv2d(1, 1, 3))
    with pytest.raises(ModelError, match="does not take inputs of shape"):
        spectral_norm(nn.Conv2d(1, 1, 3), (2, 8, 8))
    with pytest.raises(ModelError, match="not affine"):
        spectral_norm(nn.ReLU(), (4,))
