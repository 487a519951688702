"""The laws of every schedule; a newcomer adds itself to `CASES` in test_schedules.py and inherits them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from geoquant.training import Schedule, adaptive
from geoquant.training.numerics import level
from training_nets import conv_net, image_batches, optimizer_of, same_weights, train

HORIZON = {"steps_per_epoch": 3, "total_steps": 12}


def run(schedule: Schedule, batches: Any = None, **options: Any) -> tuple[Any, Any]:
    model = conv_net()
    optimizer = optimizer_of(model)
    with adaptive(model, optimizer, schedule, **HORIZON, **options) as precision:
        train(model, optimizer, image_batches(12) if batches is None else batches)
    return model, precision


class ScheduleContract:
    """Run against the fixture `schedule`."""

    def test_it_is_a_frozen_value(self, schedule: Schedule):
        with pytest.raises(AttributeError):
            schedule.patience = 3  # type: ignore[misc]
        assert schedule == type(schedule)(**vars(schedule))

    def test_levels_ascend_and_are_known(self, schedule: Schedule):
        bits = [level(name).bits for name in schedule.levels]
        assert bits == sorted(bits)

    def test_every_layer_gets_a_precision_before_anything_is_measured(self, schedule: Schedule):
        model = conv_net()
        precision = adaptive(model, optimizer_of(model), schedule, **HORIZON)
        proposals = schedule.propose(precision.moment())
        assert list(proposals) == ["stem", "deep", "head"]
        assert all(proposal.reason for proposal in proposals.values())

    def test_it_trains_and_logs_its_reasons(self, schedule: Schedule):
        model, precision = run(schedule)
        assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
        assert {change.layer for change in precision.log.changes} == {"stem", "deep", "head"}
        assert all(change.reason for change in precision.log.changes)
        assert precision.operations.flops["forward"] > 0

    def test_it_only_uses_its_levels(self, schedule: Schedule):
        _, precision = run(schedule)
        allowed = {*schedule.levels, "fp32"}
        for change in precision.log.changes:
            assert {change.after.weights, change.after.activations, change.after.gradients} <= allowed

    def test_it_is_deterministic(self, schedule: Schedule):
        (one, first), (other, second) = run(schedule), run(schedule)
        assert same_weights(one, other)
        assert first.log == second.log

    def test_it_only_measures_what_it_says_it_needs(self, schedule: Schedule):
        asked = frozenset().union(*(schedule.agenda(step, 3) for step in range(1, 400)))
        assert asked - {"decide", "whole"} <= schedule.needs

    def test_it_refuses_to_run_blind(self, schedule: Schedule):
        model = conv_net()
        if schedule.needs_horizon:
            from geoquant.errors import GeoquantError

            with pytest.raises(GeoquantError, match="give it to"):
                adaptive(model, optimizer_of(model), schedule)
        else:
            assert adaptive(model, optimizer_of(model), schedule).step == 0

    def test_deciding_changes_no_gradient_and_no_buffer(self, schedule: Schedule):
        model, precision = run(schedule, image_batches(2))
        before = {name: value.clone() for name, value in model.state_dict().items()}
        gradients = [parameter.grad.clone() for parameter in model.parameters()]
        precision.measure(schedule.needs)
        schedule.propose(precision.moment())
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        for gradient, parameter in zip(gradients, model.parameters(), strict=True):
            assert torch.equal(gradient, parameter.grad)
