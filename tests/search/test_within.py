"""The smallest model within a drop, on a model whose true drop is a known function of its bits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import geoquant as gq
from geoquant.errors import DataError, GeoquantError, PlanError
from geoquant.plan import Plan
from geoquant.search import allocate_within
from geoquant.sensitivity import Profile
from nets import small_batches, small_net

Batches = list[tuple[Tensor, Tensor]]


class Coin(nn.Module):
    """Right on every sample but those whose second number is below `rate`."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        answer = torch.where(x[:, 1] < self.rate, 1 - x[:, 0], x[:, 0]).long()
        return nn.functional.one_hot(answer, 2).float()


def rate(plan: Plan) -> float:
    return float(4 * 4.0**-plan.average_bits)


def deploy(plan: Plan) -> nn.Module:
    return Coin(rate(plan))


def draw(samples: int, seed: int, least: float = 0.0) -> Batches:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (samples,), generator=generator)
    uniform = least + (1 - least) * torch.rand(samples, generator=generator)
    x = torch.stack([labels.float(), uniform], 1)
    return [(part, part[:, 0].long()) for part in x.split(250)]


@pytest.fixture(scope="module")
def measured() -> Profile:
    grids = [f"int{bits}" for bits in range(2, 9)]
    return gq.profile(small_net(), small_batches(1), grids=grids, predictors=["weight_error"])


def test_the_plan_is_near_the_smallest_one_and_certified(measured: Profile) -> None:
    found = allocate_within(Coin(), measured, draw(2000, 1), draw(4000, 2), drop=0.05, deploy=deploy)
    assert found.certified
    assert found.certificate.upper_bound <= 0.05
    assert found.certificate.confidence == 0.95
    assert rate(found.plan) <= 0.05
    smallest = 1 - 0.5 * torch.tensor(0.05).log2().item()  # where 4·4^−b = 0.05
    assert smallest <= found.plan.average_bits <= smallest + 0.6
    assert found.plan.evidence is not None
    tried = {trial.plan.names: trial for trial in found.trials}
    assert len(tried) == len(found.trials) >= 4
    assert all(trial.drop == pytest.approx(rate(trial.plan), abs=0.03) for trial in found.trials)
    assert "certified for a drop of 0.05" in str(found)


def test_false_certificates_are_rare(measured: Profile) -> None:
    """Borderline on purpose: whatever the search picks, a certificate is wrong at most one time in twenty."""
    wrong = 0
    for seed in range(15):
        lucky = draw(100, 1000 + seed, least=0.01)  # flatters every plan
        found = allocate_within(
            Coin(), measured, lucky, draw(1000, seed), drop=0.03, deploy=deploy, confidence=0.8, tolerance=0.2
        )
        wrong += found.certified and rate(found.plan) > 0.03
    assert wrong <= 6  # 15 × 0.2 = 3 expected at most


def test_a_failed_certificate_goes_to_larger_budgets(measured: Profile) -> None:
    """Selection data that no plan fails on leads to the smallest one; the certificate does not believe it."""
    blind = draw(500, 1, least=0.9)
    found = allocate_within(Coin(), measured, blind, draw(4000, 2), drop=0.05, deploy=deploy, tolerance=0.5)
    assert found.certified
    assert len(found.failed) >= 1
    assert all(certificate.upper_bound > 0.05 for certificate in found.failed)
    once = allocate_within(Coin(), measured, blind, draw(4000, 2), drop=0.05, deploy=deploy, attempts=1)
    assert not once.certified
    assert once.certificate.upper_bound > 0.05
    assert "NOT certified" in str(once)


def test_nothing_is_good_enough(measured: Profile) -> None:
    found = allocate_within(
        Coin(), measured, draw(500, 1), draw(1000, 2), drop=0.01, deploy=lambda plan: Coin(0.5), tolerance=0.5
    )
    assert not found.certified
    assert len(found.trials) == 1, "the largest plan fails, so none needs to be tried"


def test_a_metric_of_ones_own(measured: Profile) -> None:
    def confidence_in_zero(logits: Tensor, batch: object) -> Tensor:
        return logits.softmax(-1)[:, 0]

    found = allocate_within(
        Coin(), measured, draw(1000, 1), draw(3000, 2), drop=0.05, deploy=deploy, metric=confidence_in_zero
    )
    assert found.certified
    assert found.certificate.quantity == "drop of the metric"
    with pytest.raises(PlanError, match="0 to 1"):
        allocate_within(Coin(), measured, draw(9, 1), draw(9, 2), drop=0.1, metric=lambda logits, _: 9 + logits[:, 0])
    with pytest.raises(PlanError, match="one score each"):
        allocate_within(Coin(), measured, draw(9, 1), draw(9, 2), drop=0.1, metric=lambda logits, _: logits)


def test_data_of_the_search_cannot_certify(measured: Profile) -> None:
    with pytest.raises(DataError, match="took part in the choice"):
        allocate_within(Coin(), measured, draw(500, 1), draw(500, 1)[::-1], drop=0.05, deploy=deploy)
    with pytest.raises(GeoquantError, match=r"half a point is 0\.005"):
        allocate_within(Coin(), measured, draw(5, 1), draw(5, 2), drop=5.0)


def test_the_whole_pipeline_on_a_real_net(measured: Profile) -> None:
    """Random labels: accuracy is near chance for all plans, and the default deployment rounds to nearest."""
    net = small_net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    found = allocate_within(
        net, measured, small_batches(4, 64, 5), small_batches(12, 64, 6), drop=0.2, tolerance=1.0, fixed={"head": 8}
    )
    assert found.certified
    assert found.plan.grid("head").bits == 8
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
