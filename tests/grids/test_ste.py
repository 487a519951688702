"""Straight-through gradients against the definition."""

from __future__ import annotations

import pytest
import torch

from geoquant.grids import Grid, Scales

ONE = Scales(torch.ones(1, 1))


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("int3", [-4.5, -4.0, 0.3, 3.5], [-4.6, 3.6]),
        ("int3:narrow", [-3.5, 3.5], [-3.6, 3.6]),
        ("ternary", [-1.5, 1.5], [-1.6, 1.6]),
        ("binary", [-2.0, 2.0], [-2.1, 2.1]),
        ("fp4_e2m1:channel", [-7.0, 7.0], [-7.1, 7.1]),
        ("fp32", [-1e30, 1e30], []),
    ],
)
def test_gradient_is_one_inside_and_zero_outside(name, inside, outside):
    weights = torch.tensor([inside + outside], requires_grad=True)
    Grid.parse(name).fake_quantize(weights, ONE).sum().backward()
    assert weights.grad[0].tolist() == [1.0] * len(inside) + [0.0] * len(outside)


def test_the_zero_point_moves_the_range():
    weights = torch.tensor([[-2.6, -2.4, 1.4, 1.6]], requires_grad=True)
    scales = Scales(torch.ones(1, 1), torch.full((1, 1), 2, dtype=torch.int32))
    Grid.parse("int2:affine").fake_quantize(weights, scales).sum().backward()
    assert weights.grad[0].tolist() == [0.0, 1.0, 1.0, 0.0]


def test_nothing_is_clipped_under_a_max_abs_scale():
    weights = torch.randn(6, 40, requires_grad=True)
    for name in ("int2:maxabs", "int3:affine:maxabs", "fp8_e4m3:maxabs", "int4:narrow:maxabs:group8"):
        grid = Grid.parse(name)
        gradient = torch.autograd.grad(grid.fake_quantize(weights, grid.fit(weights)).sum(), weights)[0]
        assert (gradient == 1).all(), name


def test_value_is_the_rounded_weight_bit_for_bit_in_its_own_dtype():
    grid = Grid.parse("int4")
    weights = torch.randn(3, 30)
    scales = grid.fit(weights)
    assert torch.equal(grid.fake_quantize(weights, scales), grid.decode(grid.encode(weights, scales), scales))
    assert grid.fake_quantize(weights.bfloat16(), scales).dtype == torch.bfloat16


def test_second_derivatives_pass_too():
    """f(Q(w)) with Q straight through has the Hessian of f at Q(w): for Σ w³ that is 6 Q(w)."""
    grid, weights = Grid.parse("int4:fp32"), torch.randn(2, 10, dtype=torch.float32, requires_grad=True)
    scales = grid.fit(weights)
    (first,) = torch.autograd.grad(grid.fake_quantize(weights, scales).pow(3).sum(), weights, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), weights)
    quantized = grid.decode(grid.encode(weights, scales), scales)
    inside = (weights.detach() / scales.scale <= 7.5).float()
    assert torch.allclose(second, 6 * quantized * inside * inside)
