"""Graphs of functionals: attained where theory says so, never exceeded, and honest about what they do not cover."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bounds.models import Attention, Pooled, Rearranged, Residual, mlp, perturbed, seeded, settled
from geoquant.bounds.trace import trace_functionals
from geoquant.errors import DataError, ModelError

BUILT = {
    "mlp": (lambda: seeded(None, 5, 7, 6, 3), (5,)),
    "residual": (lambda: seeded(Residual), (2, 8, 8)),
    "pooled": (lambda: seeded(Pooled), (1, 9, 9)),
    "rearranged": (lambda: seeded(Rearranged), (2, 3)),
    "smooth": (
        lambda: settled(
            nn.Sequential(
                nn.Linear(4, 6), nn.GELU(), nn.LayerNorm(6), nn.Linear(6, 6), nn.SiLU(), nn.Linear(6, 3)
            ).append(nn.Softmax(-1))
        ),
        (4,),
    ),
    "normed": (
        lambda: settled(nn.Sequential(nn.Conv1d(2, 4, 3, 2, 1), nn.Tanh(), nn.Flatten(), nn.RMSNorm(12))),
        (2, 6),
    ),
}


def ball_points(center: Tensor, radius: float, count: int) -> Tensor:
    """Points on and in the ball, float64."""
    directions = torch.randn(count, *center.shape[1:], dtype=torch.float64)
    lengths = torch.linalg.vector_norm(directions.flatten(1), dim=1).reshape(-1, *[1] * (center.dim() - 1))
    shrink = torch.rand(count, dtype=torch.float64).reshape(lengths.shape) ** 0.25
    return center + radius * shrink * directions / lengths


def change(model: nn.Module, quantized: nn.Module, x: Tensor, shift: Tensor | float = 0.0) -> Tensor:
    with torch.no_grad():
        difference = quantized.double()(x + shift) - model.double()(x)
    model.float(), quantized.float()
    return torch.linalg.vector_norm(difference.flatten(1), dim=1)


@pytest.mark.parametrize("name", BUILT)
@pytest.mark.parametrize(("radius", "input_error"), [(0.0, 0.0), (0.3, 0.0), (0.2, 0.1)])
def test_the_bound_is_never_exceeded(name: str, radius: float, input_error: float):
    make, shape = BUILT[name]
    model = make()
    quantized = perturbed(model, 0.05)
    centers = torch.randn(3, *shape)
    results = trace_functionals(model, quantized, centers, radius, input_error)
    for center, result in zip(centers.double().split(1), results, strict=True):
        x = ball_points(center, radius, 400)
        shift = ball_points(torch.zeros_like(center), input_error, 400)
        assert result.not_covered == ()
        worst = float(change(model, quantized, x, shift).max())
        assert 0 < worst <= result(input_error) * (1 + 1e-9)


def test_contributions_add_up_and_name_the_layers():
    model = seeded(Residual)
    (result,) = trace_functionals(model, perturbed(model, 0.01), torch.randn(1, 2, 8, 8))
    assert math.fsum(result.contributions.values()) == pytest.approx(result.functional.local)
    assert set(result.contributions) == {"conv1", "bn1", "conv2", "bn2", "head"}
    assert [node.operation for node in result.nodes].count("add") == 1


def test_one_wrong_layer_is_the_only_contribution():
    model = seeded(None, 5, 7, 6, 3)
    quantized = perturbed(model, 0.0)
    with torch.no_grad():
        quantized[2].weight += 0.1
    (result,) = trace_functionals(model, quantized, torch.randn(1, 5))
    assert set(result.contributions) == {"2"}
    assert perturbed(model, 0.0)[2].weight is not model[2].weight
    (nothing,) = trace_functionals(model, perturbed(model, 0.0), torch.randn(1, 5))
    assert nothing() == 0.0


def test_same_sign_scalar_net_attains_the_bound_and_a_sign_change_does_not():
    class Scalar(nn.Module):
        def __init__(self, *weights: float) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in weights)
            for layer, weight in zip(self.layers, weights, strict=True):
                layer.weight.data.fill_(weight)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = x + F.relu(layer(x))
            return x

    x = torch.tensor([[1.5]])
    exact, above, mixed = Scalar(1.0, 2.0, 0.5).eval(), Scalar(1.25, 2.5, 0.75).eval(), Scalar(1.25, 1.5, 0.75).eval()
    (same,) = trace_functionals(exact, above, x)
    assert same() == pytest.approx(float(change(exact, above, x.double())), rel=1e-8)
    (opposite,) = trace_functionals(exact, mixed, x)
    assert float(change(exact, mixed, x.double())) < 0.5 * opposite()


def test_attention_on_tokens_is_covered_and_holds():
    model = seeded(Attention)
    quantized = perturbed(model, 0.02)
    tokens = torch.randint(0, 11, (6, 5))
    results = trace_functionals(model, quantized, tokens)
    observed = change(model, quantized, tokens, 0)
    assert all(result.not_covered == () for result in results)
    assert all(seen <= result() for seen, result in zip(observed, results, strict=True))
    assert {"embedding", "layer.linear1", "head"} <= set(results[0].contributions)
    tight = perturbed(model, 1e-7)
    (small,) = trace_functionals(model, tight, tokens[:1])
    assert small() < 1.1e-5 * results[0]()  # to first order the bound is linear in the weight error


def test_products_of_activations_need_the_input_error_in_advance():
    class Gate(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x

    gate = Gate().eval()
    (zero,) = trace_functionals(gate, gate, torch.tensor([[1.0]]), 0.0, 0.0)
    (one,) = trace_functionals(gate, gate, torch.tensor([[1.0]]), 0.0, 1.0)
    assert zero(1.0) == 2.0 < 3.0  # |(1 + 1)² − 1²| = 3: valid up to the stated input error only
    assert one(1.0) == 3.0


def test_what_is_not_covered_is_named_and_bounds_nothing():
    class Strange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.sort(self.first(x)).values * torch.cumsum(x, -1))

    model = Strange().eval()
    (result,) = trace_functionals(model, perturbed(model, 0.1), torch.randn(1, 3))
    assert result.functional is None
    assert result() == math.inf
    assert [name.partition(" ")[0] for name in result.not_covered] == ["sort", "cumsum"]


@pytest.mark.parametrize("activation", [F.relu, F.gelu, F.silu, F.mish, F.hardswish, torch.sigmoid, torch.tanh, F.elu])
def test_activation_constants_are_steepest_slopes(activation):
    class Activation(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return activation(x)

    points = torch.linspace(-6, 6, 24_001, dtype=torch.float64, requires_grad=True)
    (slopes,) = torch.autograd.grad(activation(points).sum(), points)
    model = Activation().eval()
    (result,) = trace_functionals(model, model, torch.zeros(1, 2))
    assert float(slopes.abs().max()) <= result.functional.lipschitz <= 1.0005 * float(slopes.abs().max())


def test_models_that_are_not_the_same_map_are_refused():
    model = seeded(None, 4, 3, 2)
    with pytest.raises(ModelError, match="different operations"):
        trace_functionals(model, settled(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))), torch.zeros(1, 4))
    with pytest.raises(ModelError, match="another shape"):
        trace_functionals(model, settled(mlp(4, 5, 2)), torch.zeros(1, 4))
    with pytest.raises(ModelError, match="training mode"):
        trace_functionals(mlp(4, 3, 2), mlp(4, 3, 2), torch.zeros(1, 4))


@pytest.mark.parametrize(
    ("inputs", "radius", "message"),
    [
        (torch.zeros(0, 4), 0.0, "non-empty"),
        (torch.zeros(1, 4), -1.0, "at least 0"),
        (torch.full((1, 4), math.nan), 0.0, "NaN"),
        (torch.zeros(1, 4, dtype=torch.long), 0.5, "token ids"),
    ],
)
def test_meaningless_sets_are_refused(inputs: Tensor, radius: float, message: str):
    model = seeded(None, 4, 3, 2)
    with pytest.raises(DataError, match=message):
        trace_functionals(model, model, inputs, radius)
