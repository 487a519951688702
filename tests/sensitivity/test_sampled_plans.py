"""Whole plans, deployed: what regression on them must find where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import geoquant as gq
from geoquant.evaluation import divergence
from geoquant.plan import Plan
from geoquant.quantize import quantize
from geoquant.sensitivity import SampledPlans, Subject, make_subject, random_columns, stored_bits
from nets import small_batches, small_net

GRIDS = ["int2", "int3", "int4", "int6"]


def subject() -> Subject:
    return make_subject(small_net(), small_batches(4), grids=GRIDS)


def weights(looked: Subject) -> int:
    return sum(site.weights for site in looked.sites)


def real(looked: Subject, columns: tuple[int, ...]) -> float:
    plan = Plan(gq.models.take_inventory(looked.model), tuple(GRIDS[column] for column in columns))
    return divergence(looked.model, quantize(looked.model, plan), looked.batches).value


def test_it_ranks_plans_that_it_never_saw_better_than_weight_error_does() -> None:
    looked = subject()
    with torch.no_grad():
        looked.model.head.weight.mul_(0.05)  # a layer whose large relative error does nothing
    looked = make_subject(looked.model, looked.batches, grids=GRIDS)
    mine = SampledPlans(3.3, plans=40, tolerance=0.0).sample(looked)
    draw, cost = np.random.default_rng(5), stored_bits(looked)
    plans = list(dict.fromkeys(random_columns(cost, weights(looked), 3.3, draw, band=0.4) for _ in range(40)))
    truth = [real(looked, columns) for columns in plans]
    rows = np.arange(len(cost))
    learned = [mine.beliefs.mean()[rows, list(columns)].sum() for columns in plans]
    errors = [looked.squared_errors[rows, list(columns)].sum() for columns in plans]
    assert spearmanr(errors, truth).statistic < 0.5
    assert spearmanr(learned, truth).statistic > 0.9


def test_it_stops_as_soon_as_plans_are_predicted_well() -> None:
    looked = subject()
    easy, strict = (SampledPlans(3.3, plans=60, tolerance=t).sample(looked) for t in (10.0, 0.0))
    assert len(easy.beliefs.plans) == 23
    assert len(strict.beliefs.plans) == 59
    assert strict.cost == pytest.approx(61 + 4, abs=0.5)  # and FIT
    assert np.mean(strict.beliefs.stderr()) < np.mean(easy.beliefs.stderr())


def test_plans_go_through_the_pipeline_that_deploys_them() -> None:
    looked, seen = subject(), []

    def deploy(grids: tuple[gq.Grid, ...]) -> torch.nn.Module:
        seen.append(tuple(looked.grids.index(grid) for grid in grids))
        return looked.model  # a pipeline that loses nothing

    found = SampledPlans(3.3, deploy, plans=5).sample(looked)
    assert tuple(seen) == (found.beliefs.start, *found.beliefs.plans)
    assert found.beliefs.differences == (0.0,) * 4


def test_random_plans_lie_at_the_budget() -> None:
    looked = subject()
    cost, draw = stored_bits(looked), np.random.default_rng(0)
    plans = {random_columns(cost, weights(looked), 4.5, draw, band=0.3) for _ in range(20)}
    averages = [cost[np.arange(len(cost)), list(columns)].sum() / weights(looked) for columns in plans]
    assert len(plans) > 3
    assert max(abs(average - 4.5) for average in averages) <= 0.3
    assert random_columns(cost, weights(looked), 99.0, draw) == (3,) * len(cost)  # as near as it gets


def test_damages_are_in_nats_at_whatever_temperature_plans_were_compared() -> None:
    looked = subject()
    with torch.no_grad():
        looked.model.head.weight.mul_(20.0)  # sure of most answers: a few samples make up the divergence
    looked = make_subject(looked.model, looked.batches[:1], grids=GRIDS)
    found = SampledPlans(3.3, plans=40, tolerance=0.0).sample(looked)
    rows, start = np.arange(len(looked.sites)), list(found.beliefs.start)
    mean = found.beliefs.mean()
    worse = [mean[rows, list(columns)].sum() - mean[rows, start].sum() for columns in found.beliefs.plans]
    truth = [real(looked, columns) - real(looked, found.beliefs.start) for columns in found.beliefs.plans]
    assert found.temperature > 1
    assert np.mean(worse) == pytest.approx(np.mean(truth), rel=0.3)
