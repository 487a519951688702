"""Does straight-through training do on known landscapes what the theory says, step for step?"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.recovery.toys import BATCH, GAP, Point, river_loss, walk
from torch import Tensor


def basin_bound(n: float, r: float, s: float, slope: float, rho: float, rate: float) -> int:
    """The lemma's bound on the first entry."""
    return math.ceil(n**2 / (2 * rate * (s * r - rho * slope) - rate**2 * slope**2))


def test_training_enters_the_basin_at_step_8_and_stays() -> None:
    w, q, _ = walk(0.3, "river", river_loss, rate=0.02, steps=60)
    assert q[0] == pytest.approx(0.5)  # nearest rounding picks the wall
    assert max(abs(q[0]) - 0.4, 0) == pytest.approx(0.1)
    entry = next(step for step, value in enumerate(q) if abs(value) <= 0.4)
    assert entry == 8
    assert all(abs(value) <= 0.4 for value in q[8:])
    assert w[:9] == pytest.approx([0.3 - 0.02 * k for k in range(9)])
    # The lemma bounds the first entry, with room to spare.
    assert entry <= basin_bound(0.3, r=0.4, s=1.0, slope=1.0, rho=GAP / 2, rate=0.02) == 57


def test_the_second_order_reconstruction_is_blind_here() -> None:
    point = torch.tensor([0.0, 0.3], requires_grad=True)
    hessian = torch.autograd.functional.hessian(lambda p: river_loss(p[None], None), point.detach())
    assert torch.equal(hessian, torch.zeros(2, 2))


def test_float_training_with_any_budget_does_not_help_rounding() -> None:
    model = Point(0.3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    for _ in range(2000):
        optimizer.zero_grad()
        river_loss(model(BATCH), None).backward()
        optimizer.step()
    n = float(model.across.weight.detach())
    nearest = -0.2 + GAP * round((n + 0.2) / GAP)
    assert abs(nearest) > 0.4


def test_without_a_codeword_inside_training_never_enters() -> None:
    """Grid {0.5 + 0.7 k} of gap 1.4: none inside |n| ≤ 0.4."""
    _, q, _ = walk(0.3, "dry", river_loss, rate=0.02, steps=200, scale=2 * GAP)
    assert all(abs(value) > 0.4 for value in q)


@pytest.mark.parametrize(("target", "rate"), [(0.2, 0.05), (0.7, 0.05), (0.7, 0.02)])
def test_on_a_parabola_the_level_oscillates_in_the_known_proportion(target: float, rate: float) -> None:
    """Share of steps on the upper of the levels 0 and 1: (w* − 0) / 1, however small the steps are."""

    def parabola(point: Tensor, _: Any) -> Tensor:
        return 0.5 * (point[0, 1] - target) ** 2

    _, q, latents = walk(0.4, "int4", parabola, rate=rate, steps=600, scale=1.0)
    late = q[200:]
    assert set(late) == {0.0, 1.0}
    assert sum(late) / len(late) == pytest.approx(target, abs=0.03)
    seen = latents.weights["across.weight"].oscillation
    assert seen is not None
    assert seen.oscillating() == 1
    # Every jump turns back the one before; in a cycle of 1/min(t, 1−t) steps there are two.
    assert float(seen.frequency) == pytest.approx(2 * min(target, 1 - target), abs=0.15)


def test_freezing_ends_the_oscillation_at_the_nearer_level() -> None:
    def parabola(point: Tensor, _: Any) -> Tensor:
        return 0.5 * (point[0, 1] - 0.7) ** 2

    _, q, latents = walk(0.4, "int4", parabola, rate=0.05, steps=400, scale=1.0, freeze=0.02)
    seen = latents.weights["across.weight"].oscillation
    assert seen is not None
    assert bool(seen.frozen.all())
    assert set(q[-50:]) == {1.0}


def test_dampening_ends_the_oscillation_too() -> None:
    def parabola(point: Tensor, _: Any) -> Tensor:
        return 0.5 * (point[0, 1] - 0.7) ** 2

    _, free, _ = walk(0.4, "int4", parabola, rate=0.05, steps=400, scale=1.0)
    _, damped, _ = walk(0.4, "int4", parabola, rate=0.05, steps=400, scale=1.0, dampening=2.0)
    assert len(set(free[-50:])) == 2
    assert len(set(damped[-50:])) == 1
