"""Training that stops because its result is certified: which state, how sure, and what breaks the promise."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from tests.recovery.conftest import prototypes

import geoquant as gq
from geoquant.bounds.mean_bounds import anytime_upper_mean_bound, mixture_capital
from geoquant.errors import DataError
from geoquant.evaluation import accuracy_per_sample, logits
from geoquant.recovery import Certify, RecoveryError, recover_

FRESH = 4096


@pytest.fixture(scope="module")
def fresh() -> list[Any]:
    inputs, labels = prototypes(FRESH, 7)
    return list(zip(inputs.split(512), labels.split(512), strict=True))


def right(model: Any, batches: list[Any]) -> np.ndarray:
    found = logits(model, batches)
    return torch.cat([accuracy_per_sample(a, b, model) for a, b in zip(found, batches, strict=True)]).double().numpy()


def same(one: Any, two: Any) -> bool:
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_it_stops_at_the_first_certified_look_and_the_certificate_is_that_models(net, batches, fresh) -> None:
    plan = gq.uniform_plan(net, "ternary")
    begin = gq.quantize_(copy.deepcopy(net), plan, batches, effort="fast", norms="none")
    wanted = Certify(fresh, drop=0.2, every=4)
    assert float((right(net, fresh) - right(begin, fresh)).mean()) > wanted.drop  # rounding alone is not enough
    model = copy.deepcopy(begin)
    options = {"teacher": net, "epochs": 10, "rate": 3e-3, "free_rate": 3e-3, "step_rate": 3e-3}
    result = recover_(model, plan, batches, certify=wanted, validation=batches[:2], **options)
    assert result.certified
    assert 0 < len(result.losses) < 80
    assert len(result.losses) % 4 == 0
    assert result.steps == len(result.losses)
    # The bound by hand, from the deployed model: the drop on the samples read, at this look's share of the error.
    read = result.certificate.samples
    drops = (right(net, fresh) - right(model, fresh))[:read]
    alpha = 0.05 / wanted.looks(80, len(batches))
    by_hand = 2 * float(anytime_upper_mean_bound((drops + 1) / 2, alpha)) - 1
    assert result.certificate.upper_bound == pytest.approx(by_hand, abs=1e-9)
    assert result.certificate.observed == pytest.approx(drops.mean(), abs=1e-12)
    assert result.certificate.confidence == 0.95
    assert result.certificate.upper_bound <= wanted.drop
    assert "; certified: accuracy drop at most" in str(result)


def test_looking_leaves_the_course_of_training_alone(net, batches, fresh) -> None:
    """A drop that cannot be certified: the same training, the same model, and a certificate that says no."""
    plan = gq.uniform_plan(net, "ternary")
    models, results = [], []
    for certify in (None, Certify(fresh[:1], drop=1e-4, every=3)):
        models.append(copy.deepcopy(net))
        results.append(recover_(models[-1], plan, batches, epochs=2, validation=batches, certify=certify))
    assert results[0].losses == results[1].losses
    assert same(*models)
    assert results[0].certificate is None
    assert not results[1].certified
    assert results[1].certificate.samples == 512
    assert "NOT certified" in str(results[1])


def test_an_interrupted_run_goes_on_and_a_finished_one_keeps_its_certificate(net, batches, fresh, tmp_path) -> None:
    plan = gq.uniform_plan(net, "ternary")
    options: dict[str, Any] = {"epochs": 10, "rate": 3e-3, "checkpoint": tmp_path, "checkpoint_every": 1}
    options["certify"] = Certify(fresh, drop=0.2, every=4)
    first, again = copy.deepcopy(net), copy.deepcopy(net)
    result = recover_(first, plan, batches, **options)
    assert result.certified
    other = recover_(again, plan, batches, resume=True, **options)
    assert other.certificate == result.certificate
    assert other.losses == result.losses
    assert same(first, again)
    options["certify"] = Certify(fresh, drop=0.25, every=4)
    with pytest.raises(RecoveryError, match="certify was"):
        recover_(copy.deepcopy(net), plan, batches, resume=True, **options)


def test_all_looks_together_are_wrong_no_more_often_than_promised() -> None:
    """Models worse by the drop and a little: of 2,000 runs with 8 looks, at most 5 % certify one.

    A bound lies below the drop where the gambler who bets against the drop has 1/α times the capital.
    """
    drop, looks = 0.1, Certify([], drop=0.1, every=10).looks(80, 80)
    changes = (np.random.default_rng(0).random((2000, looks, 120)) < drop + 0.005).astype(float)
    capital = mixture_capital((changes + 1) / 2, (drop + 1) / 2)[..., -1].max(axis=1)
    assert np.mean(capital >= math.log(looks / 0.05)) <= 0.05
    assert np.mean(capital >= math.log(1 / 0.6)) > 0.05  # a bound that holds less often would be found out


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"teacher": None}, RecoveryError, "teacher="),
        ({"validation": "fresh"}, DataError, "took part in the choice"),
        ({"batches": "fresh"}, DataError, "took part in the choice"),
    ],
)
def test_what_would_break_the_promise_is_refused(change, error, words, net, batches, fresh) -> None:
    plan = gq.uniform_plan(net, "int3")
    model = gq.quantize_(copy.deepcopy(net), plan, batches)
    options = {"teacher": net, "batches": batches, **change}
    options = {name: fresh if value == "fresh" else value for name, value in options.items()}
    with pytest.raises(error, match=words):
        recover_(model, plan, options.pop("batches"), steps=2, certify=Certify(fresh, drop=0.1), **options)


@pytest.mark.parametrize("change", [{"drop": 0.0}, {"confidence": 1.0}, {"every": 0}, {"drop": math.nan}])
def test_numbers_without_sense_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(RecoveryError, match="make no sense"):
        Certify([], **{"drop": 0.1, **change})
