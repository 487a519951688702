"""The context around a normal loop: enters and leaves cleanly, resumes exactly, survives NaN, keeps state."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn

from geoquant.errors import GeoquantError, ModelError
from geoquant.training import LayerPrecision, Moment, Proposal, adaptive
from geoquant.training.schedules import Static
from training_nets import conv_net, image_batches, optimizer_of, same_weights, train


@dataclass(frozen=True)
class Scripted:
    """A schedule from a table: step → level."""

    script: dict[int, str]
    levels: tuple[str, ...] = ("int4", "int8", "fp32")
    patience: int = 1
    needs: frozenset[str] = frozenset({"curvature", "noise"})
    needs_horizon: frozenset[str] = frozenset()

    def agenda(self, step: int, steps_per_epoch: int | None) -> frozenset[str]:
        return frozenset({"decide"}) | (self.needs if step % 2 else frozenset())

    def propose(self, moment: Moment) -> dict[str, Proposal]:
        name = self.script[max(step for step in self.script if step <= moment.step)]
        return {n: Proposal(LayerPrecision.of(name, name, name), f"script {name}") for n in moment.layers}


def test_forwards_and_hooks_are_given_back():
    model = conv_net()
    optimizer = optimizer_of(model)
    with adaptive(model, optimizer, "uniform:int4"):
        assert "forward" in model.stem.__dict__
        with pytest.raises(GeoquantError, match="already"), adaptive(model, optimizer, "float32"):
            pass
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    with pytest.raises(RuntimeError, match="stop"), adaptive(model, optimizer, Scripted({0: "int4"})):
        raise RuntimeError("stop")
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert not model._forward_pre_hooks


def test_levels_change_during_a_run_without_losing_state():
    model = conv_net()
    optimizer = optimizer_of(model)
    script = Scripted({0: "int4", 2: "fp32", 4: "int8"})
    with adaptive(model, optimizer, script) as run:
        train(model, optimizer, image_batches())
    assert [(c.step, c.after.weights) for c in run.log.changes if c.layer == "stem"] == [
        (0, "int4"), (2, "fp32"), (4, "int8"),
    ]  # fmt: skip
    assert "script int8" in str(run.log.changes[-1])
    assert optimizer.state[model.stem.weight]["momentum_buffer"].abs().sum() > 0


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_resume_is_exact_to_the_bit(kind: str, tmp_path: Any):
    batches, script = image_batches(8), Scripted({0: "int4", 3: "int8", 6: "int4"}, patience=1)
    whole = conv_net()
    whole_optimizer = optimizer_of(whole, kind)
    with adaptive(whole, whole_optimizer, script, seed=3) as run:
        train(whole, whole_optimizer, batches)
    first = conv_net()
    first_optimizer = optimizer_of(first, kind)
    with adaptive(first, first_optimizer, script, seed=3) as before:
        train(first, first_optimizer, batches[:5])
        kept = {"model": first.state_dict(), "optimizer": first_optimizer.state_dict(), "run": before.state_dict()}
        torch.save(kept, tmp_path / "checkpoint.pt")
    loaded = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    second = conv_net(seed=9)
    second_optimizer = optimizer_of(second, kind)
    second.load_state_dict(loaded["model"])
    second_optimizer.load_state_dict(loaded["optimizer"])
    with adaptive(second, second_optimizer, script, seed=3) as after:
        after.load_state_dict(loaded["run"])
        train(second, second_optimizer, batches[5:])
    assert same_weights(whole, second)
    assert after.operations == run.operations
    assert after.log == run.log
    assert after.moment() == run.moment()
    assert not same_weights(whole, first)


def test_a_state_of_another_model_is_refused():
    model = conv_net()
    run = adaptive(model, optimizer_of(model), "float32")
    other = nn.Linear(2, 2)
    with pytest.raises(ModelError, match="layers"):
        adaptive(other, optimizer_of(other), "float32").load_state_dict(run.state_dict())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_nan_is_counted_leaves_everything_alone_and_raises_precision(bad: float):
    batches = image_batches(3)
    model = conv_net()
    optimizer = optimizer_of(model)
    with adaptive(model, optimizer, Scripted({0: "int4"})) as run:
        train(model, optimizer, batches[:1])
        before = {name: value.clone() for name, value in model.named_parameters()}
        poison = model.head.bias.register_hook(lambda g: g * bad)
        train(model, optimizer, batches[1:2])
        poison.remove()
        assert all(torch.equal(before[name], value) for name, value in model.named_parameters())
        assert run.log.anomalies == [1]
        assert run.assignment["stem"].weights == "int8"
        train(model, optimizer, batches[2:])
        assert run.assignment["stem"].weights == "int8"  # held, although the schedule asks for less
        assert not torch.equal(before["stem.weight"], model.stem.weight)
    assert "NaN" in run.log.changes[-1].reason


def test_fewer_bits_need_patience_and_more_bits_do_not():
    model = conv_net()
    optimizer = optimizer_of(model)
    script = replace(Scripted({0: "int8", 1: "int4", 4: "fp32"}), patience=3)
    seen = []
    with adaptive(model, optimizer, script) as run:
        for batch in image_batches(5):
            train(model, optimizer, [batch])
            seen.append(run.assignment["stem"].weights)
    assert seen == ["int8", "int8", "int4", "fp32", "fp32"]


def test_what_a_schedule_needs_is_asked_for_before_anything_changes():
    model = conv_net()
    needy = replace(Static(LayerPrecision(), ""), needs_horizon=frozenset({"total_steps"}))
    with pytest.raises(GeoquantError, match="total_steps"):
        adaptive(model, optimizer_of(model), needy)
    with pytest.raises(ModelError, match="no linear"):
        adaptive(nn.BatchNorm1d(3), optimizer_of(nn.Linear(1, 1)), "float32")


def test_excluded_layers_stay_exact():
    model = conv_net()
    run = adaptive(model, optimizer_of(model), "uniform:int4", exclude=("re:s.*",))
    assert set(run.layers) == {"deep", "head"}


def test_a_closure_is_looked_at_after_it_computed_the_gradients():
    plain, closed = conv_net(), conv_net()
    batches, script = image_batches(4), Scripted({0: "int8", 2: "int4"})
    optimizer = optimizer_of(plain)
    with adaptive(plain, optimizer, script) as run:
        train(plain, optimizer, batches)
    other = optimizer_of(closed)
    with adaptive(closed, other, script) as by_closure:
        for inputs, labels in batches:

            def closure(x: torch.Tensor = inputs, y: torch.Tensor = labels) -> torch.Tensor:
                other.zero_grad()
                loss = nn.functional.cross_entropy(closed(x), y)
                loss.backward()
                return loss

            other.step(closure)
    assert same_weights(plain, closed)
    assert by_closure.moment() == run.moment()
    poison = closed.head.bias.register_hook(lambda g: g * float("nan"))
    with adaptive(closed, other, script) as by_closure:
        other.step(closure)
    poison.remove()
    assert by_closure.log.anomalies == [0]
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), closed.parameters(), strict=True))
