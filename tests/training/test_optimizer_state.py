"""What an optimizer keeps in few bits: grids, dead zone, error feedback, second moments that never vanish."""

from __future__ import annotations

import pytest
import torch

from geoquant.training import LayerPrecision
from geoquant.training.noise import Noise
from geoquant.training.optimizer_state import round_state_, state_bits
from training_nets import trained


def quadratic_run(update: str, x: float, curvature: float = 5.0, steps: int = 40) -> list[float]:
    """½λx² with the weight stored in int4 beside one that fixes the step at 1; η = 1/(10λ)."""
    weight, state, noise, seen = torch.tensor([[7.0, x]]), {}, Noise(1), []
    round_state_(weight, state, LayerPrecision(stored="int4"), "nearest", noise)
    for _ in range(steps):
        gradient = torch.tensor([[0.0, curvature * float(weight[0, 1])]])
        weight -= gradient / (10 * curvature)
        round_state_(weight, state, LayerPrecision(stored="int4"), update, noise)
        seen.append(float(weight[0, 1]))
    return seen


def test_nearest_rounding_stalls_in_the_dead_zone_and_the_others_move():
    # At x = 4 the step is 0.4, just under half a gap: nearest rounding brings it back every time.
    assert set(quadratic_run("nearest", 4.0)) == {4.0}
    assert quadratic_run("feedback", 4.0)[-1] <= 1.0
    ends = [quadratic_run("stochastic", 4.0)[-1] for _ in range(3)]
    assert max(ends) < 4.0
    # The twin: a step just over half a gap moves under nearest rounding too, until it is short again.
    assert quadratic_run("nearest", 6.0)[0] == 5.0


def test_rounding_forward_just_under_half_a_step_stalls_under_nearest_and_not_under_stochastic():
    """½λx² with gradients taken at Q(x): theory's tight case of the descent condition."""
    from geoquant.training.numerics import level, round_rows

    noise, delta = Noise(0), 1.0
    for x, how, moves in (
        (0.4999, "nearest", False),
        (0.5001, "nearest", True),
        (0.4999, "stochastic", True),
    ):
        weight = torch.tensor([[7.0 * delta, x]])
        rounded = torch.cat([round_rows(weight, level("int4"), how, noise)[:, 1] for _ in range(50)])
        assert bool((5.0 * rounded).abs().sum() > 0) is moves


def test_error_feedback_loses_nothing():
    weight, state = torch.tensor([[1.0, 0.0]]), {}
    for _ in range(30):
        weight[0, 1] += 0.01
        round_state_(weight, state, LayerPrecision(stored="int4"), "feedback", Noise(0))
    assert float(weight[0, 1] + state["geoquant_feedback"][0, 1]) == pytest.approx(0.3, abs=1e-5)


@pytest.mark.parametrize("name", ["int4", "int8", "fp8_e4m3", "bf16"])
def test_second_moments_are_rounded_up_and_never_to_zero(name: str):
    torch.manual_seed(0)
    square = torch.randn(4, 50).pow(2) ** 3
    weight, state = torch.zeros(4, 50), {"exp_avg_sq": square.clone(), "step": torch.tensor(3.0)}
    round_state_(weight, state, LayerPrecision(state=name), "stochastic", Noise(0))
    assert (state["exp_avg_sq"] > 0).all()
    if name.startswith("int"):
        assert (state["exp_avg_sq"] >= square * (1 - 1e-5)).all()
    assert state["step"] == 3
    assert state["exp_avg_sq"].sqrt().max() == pytest.approx(float(square.sqrt().max()), rel=0.05)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_state_lies_on_the_grid_after_every_step(kind: str):
    from geoquant.training.schedules import Static

    model, run = trained(Static(LayerPrecision(state="int4", stored="int8"), ""), kind)
    for name in ("stem", "deep", "head"):
        weight = model.get_submodule(name).weight
        assert all(row.unique().numel() <= 255 for row in weight.detach().flatten(1))
        state = run.optimizer.state[weight]
        moment = state["momentum_buffer" if kind == "sgd" else "exp_avg"]
        assert all(row.unique().numel() <= 15 for row in moment.flatten(1))
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_bits_kept_are_counted_with_the_residual():
    weight, precision = torch.zeros(2, 3), LayerPrecision(state="int8", stored="int4")
    state = {"exp_avg": torch.zeros(2, 3), "exp_avg_sq": torch.zeros(2, 3), "step": torch.tensor(1.0)}
    assert state_bits(state, weight, precision) == 6 * (8 + 8 + 4)
    assert state_bits({**state, "geoquant_feedback": torch.zeros(2, 3)}, weight, precision) == 6 * (8 + 8 + 4 + 32)
