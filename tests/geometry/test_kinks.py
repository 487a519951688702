"""Kinks are found wherever rectifiers are called, and smoothed without changing anything else."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from geoquant.errors import DataError, GeoquantError, ModelError
from geoquant.geometry.kinks import kink_density, smoothed


class Calls(nn.Module):
    """Calls one function of its input."""

    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, x):
        return self.call(x)


RECTIFIERS = {
    "relu": (F.relu, [0.0]),
    "method": (lambda x: x.relu(), [0.0]),
    "in place": (lambda x: (x * 1).relu_(), [0.0]),
    "leaky": (lambda x: F.leaky_relu(x, 0.3), [0.0]),
    "prelu": (nn.PReLU(), [0.0]),
    "relu6": (nn.ReLU6(), [0.0, 6.0]),
    "hardtanh": (nn.Hardtanh(-2.0, 1.0), [-2.0, 1.0]),
    "clamp": (lambda x: x.clamp(min=0.5), [0.5]),
    "clamp_min": (lambda x: torch.clamp_min(x, -1.0), [-1.0]),
    "clamp both": (lambda x: torch.clamp(x, -1, 2), [-1.0, 2.0]),
    "abs": (abs, [0.0]),
}


@pytest.mark.parametrize("name", RECTIFIERS)
def test_the_share_near_every_kink(name):
    call, kinks = RECTIFIERS[name]
    x = torch.linspace(-7, 7, 10_001).view(1, -1)
    radius = 0.05 * float(x.square().mean().sqrt())
    expected = len(kinks) * 2 * radius / 14
    assert kink_density(Calls(call), [x], distance=0.05).overall.value == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("name", RECTIFIERS)
def test_smoothing_stays_within_its_bound_and_bends_by_its_beta(name):
    call, kinks = RECTIFIERS[name]
    x = torch.linspace(-7, 7, 141, dtype=torch.float64)
    model = Calls(call).double()
    with torch.no_grad():
        sharp = model(x)
        with smoothed(4.0):
            soft = model(x)
        assert torch.equal(model(x), sharp)  # nothing lingers
    gap = (soft - sharp).abs()
    assert 0.01 < float(gap.max()) <= len(kinks) * 2 * math.log(2) / 4 + 1e-9
    far = torch.stack([(x - kink).abs() for kink in kinks]).amin(0) > 6
    assert float(gap[far].max() if far.any() else 0.0) < 1e-6


def test_in_place_rectifiers_stay_in_place():
    class Reused(nn.Module):
        def forward(self, x):
            y = x * 2
            F.relu(y, inplace=True)
            return y

    x = torch.tensor([[-1.0, 0.0, 1.0]])
    with smoothed(3.0):
        assert torch.allclose(Reused()(x), F.softplus(2 * x, beta=3.0))


def test_layers_are_named_and_samples_counted():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    found = kink_density(
        model, [(torch.randn(8, 3), torch.zeros(8)), (torch.randn(5, 3), torch.zeros(5))], distance=0.3
    )
    assert set(found.layers) == {"1", "2.1"}
    assert found.overall.samples == 26
    shares = [estimate.value for estimate in found.layers.values()]
    assert found.overall.value == pytest.approx(sum(shares) / 2)
    assert found.overall.stderr > 0


def test_no_rectifier_no_kinks():
    with pytest.raises(ModelError, match="no rectifier"):
        kink_density(nn.Linear(2, 2), [torch.zeros(1, 2)])
    with pytest.raises(DataError, match="no batch"):
        kink_density(nn.ReLU(), [])
    with pytest.raises(GeoquantError, match="positive"), smoothed(0.0):
        pass
