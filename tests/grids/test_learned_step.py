"""Learned steps against autograd and against finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from geoquant.grids import Grid, clip_limits
from geoquant.grids.learned_step import learned_step

GRIDS = (
    "int2",
    "int3",
    "int4:narrow",
    "int2:affine",
    "ternary",
    "binary",
    "fp4_e2m1:channel",
    "int3:tensor",
    "int3:mse-signed",
)


def reference(w: Tensor, step: Tensor, zero: Tensor | None, grid: Grid, limits: tuple[float, float]) -> Tensor:
    """Equation 1 of LSQ in plain autograd: clip, round straight through, multiply."""
    shift = 0.0 if zero is None else zero
    x = w / step + shift
    held = x.clamp(*limits)
    # Outside, the end level is what stands there, also where the range of gradients is wider than the levels.
    level = grid.format.nearest(x.detach())
    return (held + (level - held).detach() - shift) * step


@pytest.mark.parametrize("name", GRIDS)
def test_gradients_are_those_of_the_paper(name: str) -> None:
    grid = Grid.parse(name)
    torch.manual_seed(0)
    matrix = 3 * torch.randn(4, 40)
    scales = grid.fit(matrix / 2)  # so that some weights lie outside
    limits = clip_limits(grid.format)
    assert limits is not None
    zero = None if scales.zero is None else scales.zero.float()
    upstream = torch.randn(4, 40)
    found, wanted = [], []
    for results, compute in (
        (found, lambda w, s: learned_step(w, s, zero, grid.format, limits)[0]),
        (wanted, lambda w, s: reference(w, s, zero, grid, limits)),
    ):
        w, s = matrix.clone().requires_grad_(), scales.scale.clone().requires_grad_()
        out = compute(w, s)
        (out * upstream).sum().backward()
        results.extend((out.detach(), w.grad, s.grad))
    inside = wanted[1] != 0
    assert inside.any()
    assert not inside.all()
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", GRIDS)
def test_the_result_is_the_grids_own(name: str) -> None:
    grid = Grid.parse(name)
    torch.manual_seed(1)
    matrix = torch.randn(4, 40)
    scales = grid.fit(matrix)
    zero = None if scales.zero is None else scales.zero.float()
    limits = clip_limits(grid.format)
    assert limits is not None
    w = matrix.clone().requires_grad_()
    out, level = learned_step(w, scales.scale, zero, grid.format, limits)
    assert torch.equal(out, grid.decode(grid.encode(matrix, scales), scales))
    assert torch.equal(grid.format.encode(level.detach()), grid.encode(matrix, scales))
    out.sum().backward()
    by_grid = matrix.clone().requires_grad_()
    grid.fake_quantize(by_grid, scales).sum().backward()
    assert torch.equal(w.grad, by_grid.grad)


def test_outside_the_range_the_step_has_the_slope_of_finite_differences() -> None:
    grid, h = Grid.parse("int3"), 1e-3
    w = torch.tensor([-70.0, 50.0, 44.0], dtype=torch.float64)  # all clipped, so the output is linear in the step
    step = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    learned_step(w, step, None, grid.format, (-4.0, 3.0))[0].sum().backward()

    def total(s: float) -> float:
        return float(learned_step(w, torch.tensor(s, dtype=w.dtype), None, grid.format, (-4.0, 3.0))[0].sum())

    assert step.grad is not None
    assert step.grad.item() == pytest.approx((total(1.5 + h) - total(1.5 - h)) / (2 * h), rel=1e-6)


def test_the_mean_slope_inside_is_that_of_the_rounding_error() -> None:
    """Rounding is flat, so a single difference misses LSQ's slope; averaged over many weights both agree."""
    grid = Grid.parse("int8")
    generator = torch.Generator().manual_seed(0)
    w = 40 * torch.rand(200_000, generator=generator, dtype=torch.float64)
    step = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)

    def error(s: Tensor) -> Tensor:
        return (learned_step(w, s, None, grid.format, (-128.0, 127.0))[0] - w).square().mean()

    error(step).backward()
    h = 0.05
    with torch.no_grad():
        slope = (error(step + h) - error(step - h)) / (2 * h)
    # E[e²] = s²/12: the true slope is s/6; LSQ's is 2E[e · e/s] = s/6 as well.
    assert step.grad is not None
    assert step.grad.item() == pytest.approx(1 / 6, rel=0.02)
    assert slope.item() == pytest.approx(1 / 6, rel=0.05)


def test_frozen_values_keep_their_level_and_get_no_gradient() -> None:
    w = torch.tensor([0.2, 1.8], requires_grad=True)
    step = torch.tensor(1.0, requires_grad=True)
    held = torch.tensor([True, False]), torch.tensor([-3.0, 0.0])
    out, _ = learned_step(w, step, None, Grid.parse("int3").format, (-4.0, 3.0), held=held)
    out.sum().backward()
    assert out.tolist() == [-3.0, 2.0]
    assert w.grad.tolist() == [0.0, 1.0]
    assert step.grad.item() == pytest.approx(-3 + (2 - 1.8))  # a frozen weight moves with its step


def test_the_factor_scales_only_the_steps_gradient() -> None:
    factor = 1 / math.sqrt(2 * 3)
    grads = []
    for scaling in (1.0, factor):
        w, step = torch.tensor([0.6, 9.0], requires_grad=True), torch.tensor(0.5, requires_grad=True)
        learned_step(w, step, None, Grid.parse("int3").format, (-4.0, 3.0), scaling)[0].sum().backward()
        grads.append((w.grad, step.grad))
    assert torch.equal(grads[0][0], grads[1][0])
    assert grads[1][1].item() == pytest.approx(factor * grads[0][1].item())


def test_the_memory_format_is_kept() -> None:
    w = torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last).requires_grad_()
    step = torch.full((8, 1, 1, 1), 0.1, requires_grad=True)
    out, level = learned_step(w, step, None, Grid.parse("int4").format, (-8.0, 7.0))
    out.square().sum().backward()
    for tensor in (out, level, w.grad):
        assert tensor.is_contiguous(memory_format=torch.channels_last)


def test_a_step_of_zero_gives_zeros_not_nan() -> None:
    w = torch.ones(3, requires_grad=True)
    out, _ = learned_step(w, torch.tensor(0.0), None, Grid.parse("int4").format, (-8.0, 7.0))
    assert out.tolist() == [0.0, 0.0, 0.0]
