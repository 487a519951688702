"""Few passes over memory, and the same results and gradients as the general learned step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from geoquant.grids.formats import find_format
from geoquant.grids.learned_scale import learned_scale
from geoquant.grids.learned_step import learned_step

LAYOUTS = {
    "rows": lambda x: x,
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "with gaps": lambda x: torch.stack([x, x], -1)[..., 0],
}


def results(values: Tensor, upstream: Tensor, step: float, compute) -> tuple[Tensor, Tensor | None, Tensor | None]:
    x, s = values.detach().requires_grad_(), torch.tensor([step], dtype=values.dtype, requires_grad=True)
    out = compute(x, s)
    out.backward(upstream)
    return out.detach(), x.grad, s.grad


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("name", "step", "zero"), [("int4", 0.3, 0), ("int3", -0.2, 0), ("ternary", 0.7, 0)])
@pytest.mark.parametrize("grows", [False, True])
def test_it_agrees_with_the_general_step(name: str, step: float, zero: int, layout: str, grows: bool) -> None:
    generator, format = torch.Generator().manual_seed(0), find_format(name)
    values = LAYOUTS[layout](torch.randn(4, 3, 5, 5, generator=generator, dtype=torch.float64))
    upstream = torch.randn(4, 3, 5, 5, generator=generator, dtype=torch.float64)
    upstream = upstream.to(memory_format=torch.channels_last) if grows else upstream
    limits = float(format.levels[0]), float(format.levels[-1])
    found = results(values, upstream, step, lambda x, s: learned_scale(x, s, zero, format, limits, 0.5))
    wanted = results(values, upstream, step, lambda x, s: learned_step(x, s, None, format, limits, 0.5)[0])
    assert (wanted[1] == 0).any()
    assert (wanted[1] != 0).any()
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_zero_point_shifts_range_and_slope() -> None:
    format = find_format("int4").option("affine")
    limits = float(format.levels[0]), float(format.levels[-1])
    values = torch.linspace(-3, 6, 91, dtype=torch.float64)
    upstream = torch.linspace(1, 2, 91, dtype=torch.float64)
    zero = torch.tensor(4.0, dtype=torch.float64)
    found = results(values, upstream, 0.35, lambda x, s: learned_scale(x, s, 4, format, limits))
    wanted = results(values, upstream, 0.35, lambda x, s: learned_step(x, s, zero, format, limits)[0])
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_values_on_the_end_levels_are_inside_and_those_beyond_are_not() -> None:
    """Zeros after a ReLU lie on the lowest level of an unsigned grid; their gradient has to pass."""
    format = find_format("int2").option("affine")
    x = torch.tensor([0.0, 3.0, -0.01, 3.01], requires_grad=True)
    learned_scale(x, torch.ones(1), 0, format, (0.0, 3.0)).sum().backward()
    assert x.grad.tolist() == [1.0, 1.0, 0.0, 0.0]


def test_a_step_of_zero_gives_zeros() -> None:
    out = learned_scale(torch.tensor([1.0, -2.0]), torch.zeros(1), 0, find_format("int4"), (-8.0, 7.0))
    assert out.tolist() == [0.0, 0.0]
