"""Three claims on one quantity: the bound holds, the estimate is right to first order, the gaps are what they say."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from bounds.models import Attention, Residual, perturbed, seeded
from geoquant.bounds.search import attacked_error, sampled_error
from geoquant.bounds.tiers import BOUND_METHODS, error_bound, error_estimate, error_observed, error_tiers
from geoquant.errors import GeoquantError, ModelError


@pytest.mark.parametrize("method", BOUND_METHODS)
@pytest.mark.parametrize("norm", ["largest", "euclidean"])
def test_every_bound_holds_for_both_sizes(method: str, norm: str):
    model = seeded(Residual)
    quantized, inputs = perturbed(model, 0.02), torch.randn(2, 2, 6, 6)
    bound = error_bound(model, quantized, inputs, 0.02, method=method, norm=norm)
    assert torch.all(error_observed(model, quantized, inputs, 0.02, norm=norm) <= bound.values)
    assert torch.all(sampled_error(model, quantized, inputs, 0.02, norm=norm, samples=500) <= bound.values)


def test_zonotopes_are_tighter_than_intervals_and_norms():
    model = seeded(None, 12, 24, 24, 4)
    quantized, inputs = perturbed(model, 0.01), torch.randn(3, 12)
    gaps = {
        method: float(error_tiers(model, quantized, inputs, 0.01, method=method).bound_gap.median())
        for method in BOUND_METHODS
    }
    assert 1 <= gaps["zonotopes"] < 1.2
    assert gaps["zonotopes"] < gaps["intervals"] < gaps["norms"]


@pytest.mark.parametrize("make", [Residual, Attention])
def test_the_estimate_is_exact_to_first_order(make: type[nn.Module]):
    model = seeded(make)
    inputs: Tensor = torch.randn(3, 2, 6, 6) if make is Residual else torch.randint(0, 11, (3, 5))
    errors = []
    for size in (1e-4, 1e-5):
        quantized = perturbed(model.double(), size)
        estimate, seen = error_estimate(model, quantized, inputs), error_observed(model, quantized, inputs)
        errors.append(float(((estimate.values - seen) / seen).abs().max()))
    assert errors[0] < 0.05
    assert errors[1] < 0.2 * errors[0]  # the rest is second order


def test_contributions_are_the_effects_of_single_layers():
    model = seeded(None, 5, 8, 3)
    quantized, inputs = perturbed(model, 1e-6), torch.randn(4, 5)
    estimate = error_estimate(model, quantized, inputs)
    assert set(estimate.contributions) == {"0", "2"}
    for name, index in (("0", 0), ("2", 2)):
        single = perturbed(model, 0.0)
        single[index].load_state_dict(quantized[index].state_dict())
        assert torch.allclose(estimate.contributions[name], error_observed(model, single, inputs), rtol=1e-3)
    assert torch.all(sum(estimate.contributions.values()) >= estimate.values - 1e-15)


def test_the_estimate_is_blind_to_a_kink_that_the_bound_sees():
    # relu(w·x) at w·x slightly below 0: no first-order effect, but a real one once the weight crosses.
    model, quantized = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU()).eval(), None
    quantized = perturbed(model, 0.0)
    model[0].weight.data.fill_(-0.01)
    quantized[0].weight.data.fill_(0.5)
    tiers = error_tiers(model, quantized, torch.ones(1, 1))
    assert float(tiers.estimate.values) == 0.0
    assert float(tiers.observed) == pytest.approx(0.5)
    assert float(tiers.bound.values) == pytest.approx(0.5)
    assert float(tiers.estimate_gap) == 0.0


def test_attention_has_an_estimate_and_a_bound_by_norms():
    model = seeded(Attention)
    quantized, tokens = perturbed(model, 1e-3), torch.randint(0, 11, (3, 5))
    tiers = error_tiers(model, quantized, tokens, method="norms")
    assert tiers.bound.not_covered == ()
    assert torch.all(tiers.bound_gap >= 1)
    assert torch.all((tiers.estimate_gap > 0.9) & (tiers.estimate_gap < 1.1))


def test_an_attack_finds_at_least_what_sampling_finds_on_a_linear_net():
    model = seeded(None, 6, 3)
    quantized, inputs = perturbed(model, 0.1), torch.randn(2, 6)
    exact = (quantized[0].weight - model[0].weight).double().detach()
    offset = (quantized(inputs) - model(inputs)).double().detach()
    worst = (offset.abs() + 0.3 * exact.abs().sum(1)).amax(1)
    assert torch.allclose(attacked_error(model, quantized, inputs, 0.3), worst, atol=1e-6)
    assert torch.all(sampled_error(model, quantized, inputs, 0.3) <= worst + 1e-6)


def test_what_makes_no_sense_is_refused():
    model = seeded(None, 3, 2)
    x = torch.zeros(1, 3)
    with pytest.raises(GeoquantError, match="zonotopes"):
        error_bound(model, model, x, method="magic")
    with pytest.raises(GeoquantError, match="euclidean"):
        error_bound(model, model, x, method="norms", norm="manhattan")
    with pytest.raises(GeoquantError, match="at least one"):
        attacked_error(model, model, x, 0.1, restarts=0)
    with pytest.raises(GeoquantError, match="at least one"):
        sampled_error(model, model, x, 0.1, samples=0)
    with pytest.raises(ModelError, match="another shape"):
        error_estimate(model, seeded(None, 3, 4), x)


def test_an_uncovered_operation_makes_an_infinite_gap():
    class Sorted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sort(x).values

    model = nn.Sequential(nn.Linear(3, 3), Sorted()).eval()
    bound = error_bound(model, perturbed(model, 0.1), torch.randn(1, 3))
    assert bound.values.item() == math.inf
    assert len(bound.not_covered) == 1
