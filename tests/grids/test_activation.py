"""Activation grids: names, arithmetic by hand, and what may not be combined."""

from __future__ import annotations

import pytest
import torch

from geoquant.errors import GridError
from geoquant.grids import ActivationGrid, ActivationScale

NAMES = {
    "int8": "int8",
    "int8:mse:tensor:static": "int8",
    "int8:affine": "int8:affine",
    "int4:token:affine": "int4:affine:token",
    "int4:affine:dynamic:token": "int4:affine:token",
    "int8:dynamic": "int8:dynamic",
    "int8:dynamic:minmax": "int8:dynamic",
    "int8:minmax": "int8:minmax",
    "int8:percentile": "int8:percentile",
    "int8:percentile99.99": "int8:percentile",
    "int6:narrow:percentile99.9": "int6:narrow:percentile99.9",
    "int8:entropy:affine": "int8:affine:entropy",
    "fp8_e4m3": "fp8_e4m3",
    "ternary:token": "ternary:token",
}


@pytest.mark.parametrize("name", NAMES)
def test_names_are_normal_forms(name: str) -> None:
    grid = ActivationGrid.parse(name)
    assert str(grid) == NAMES[name]
    assert ActivationGrid.parse(str(grid)) == grid


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("int8:channel", "no option 'channel'"),
        ("int8:token:static", "per token"),
        ("int8:dynamic:mse", "dynamic grid"),
        ("int8:static:dynamic", "twice"),
        ("fp16", "stay as they are"),
        ("int8:percentile0", "between 0 and 100"),
        ("int8:percentile101", "between 0 and 100"),
        ("int8:percentil", "did you mean 'percentile'"),
        ("int9", "2 to 8 or 16"),
        ("int8:affine:narrow", "cannot be narrow"),
    ],
)
def test_mistakes_get_a_sentence(name: str, said: str) -> None:
    with pytest.raises(GridError, match=said):
        ActivationGrid.parse(name)


def test_affine_covers_the_range_and_keeps_zero() -> None:
    grid = ActivationGrid.parse("int2:affine")
    scale = grid.cover(-1.0, 2.0)
    assert scale == ActivationScale(1.0, 1)
    values = torch.tensor([-7.0, -1.4, -0.4, 0.0, 0.6, 1.6, 99.0])
    assert grid.quantize(values, scale).tolist() == [-1, -1, 0, 0, 1, 2, 2]
    assert grid.cover(3.0, 6.0) == ActivationScale(2.0, 0), "the range is widened to hold zero"


def test_narrow_is_the_textbook_symmetric_grid() -> None:
    grid = ActivationGrid.parse("int8:narrow")
    scale = grid.cover(-3.0, 1.27 * 100)
    assert scale.zero == 0
    assert scale.scale == pytest.approx(1.0)
    rounded = grid.quantize(torch.tensor([200.0, -200.0, 0.4]), scale)
    assert rounded.tolist() == pytest.approx([127, -127, 0])


def test_stored_scales_are_float32_numbers() -> None:
    scale = ActivationGrid.parse("int8:affine").cover(-0.3, 0.7)
    assert torch.tensor([scale.scale], dtype=torch.float32).item() == scale.scale


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 5), (2, 3, 4, 5), ()])
@pytest.mark.parametrize("name", ["int4:token", "int4:affine:token"])
def test_each_token_has_its_own_scale(name: str, shape: tuple[int, ...]) -> None:
    """Against rounding the tokens one by one; the twin: a scale for all of them gives other numbers."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = (values * torch.logspace(0, 3, (shape or (1,))[-1])).reshape(shape)
    per_token, per_tensor = ActivationGrid.parse(name), ActivationGrid.parse(name.replace("token", "dynamic"))
    together = per_token.quantize_dynamically(values)
    rows = values.reshape(-1, values.shape[-1]) if shape else values[None]
    alone = torch.stack([per_tensor.quantize_dynamically(row) for row in rows]).reshape(shape)
    assert torch.equal(together, alone)
    if len(shape) > 1:
        assert not torch.equal(together, per_tensor.quantize_dynamically(values))
    if len(shape) == 4:
        samples = torch.stack([per_tensor.quantize_dynamically(sample) for sample in values])
        assert torch.equal(per_token.quantize_dynamically(values, by_sample=True), samples)


@pytest.mark.parametrize("name", ["int8:affine:dynamic", "int4:token", "fp8_e4m3:dynamic"])
def test_dynamic_rounding_stays_within_half_a_step(name: str) -> None:
    grid = ActivationGrid.parse(name)
    values = torch.randn(64, 32, generator=torch.Generator().manual_seed(1))
    error = (grid.quantize_dynamically(values) - values).abs()
    span = values.max() - values.min() if "affine" in name else 2 * values.abs().amax(-1, keepdim=True)
    gaps = 2 * grid.format.reach
    relative = 1 / 16 if "fp8" in name else 0.0
    assert bool((error <= 0.5001 * span / gaps + relative * values.abs() + 1e-6).all())


@pytest.mark.parametrize("name", ["int8:affine", "int8", "int8:token", "int8:affine:dynamic"])
def test_zeros_stay_zeros(name: str) -> None:
    grid = ActivationGrid.parse(name)
    zeros = torch.zeros(2, 3)
    found = grid.quantize_dynamically(zeros) if grid.dynamic else grid.quantize(zeros, grid.cover(0.0, 0.0))
    assert torch.equal(found, zeros)


def test_gradient_is_one_inside_and_zero_where_it_clips() -> None:
    grid = ActivationGrid.parse("int2:affine")
    values = torch.tensor([-9.0, -1.4, 0.3, 2.4, 2.6], requires_grad=True)
    grid.quantize(values, ActivationScale(1.0, 1)).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0, 1, 1, 1, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_stays(dtype: torch.dtype) -> None:
    grid = ActivationGrid.parse("int8:affine")
    assert grid.quantize(torch.ones(3, dtype=dtype), grid.cover(0, 2)).dtype == dtype


def test_ranges_that_are_not_finite_are_refused() -> None:
    with pytest.raises(GridError, match="finite range"):
        ActivationGrid.parse("int8").cover(float("-inf"), 1.0)


def test_another_range_for_the_same_grid() -> None:
    assert str(ActivationGrid.parse("int4:affine").with_range("minmax")) == "int4:affine:minmax"
    assert str(ActivationGrid.parse("int4:affine:token").with_range("mse")) == "int4:affine:token"
    with pytest.raises(GridError, match="did you mean 'entropy'"):
        ActivationGrid.parse("int4").with_range("entropi")
