"""Max-abs scales, zero points and what rounding a scale to few bits may do."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geoquant.errors import GridError
from geoquant.grids import SCALE_DTYPES, Grid
from geoquant.grids.scale_dtypes import stored_above


def scale_of(grid: str, *weights: float) -> float:
    return float(Grid.parse(grid).fit(torch.tensor([weights])).scale)


def test_max_abs_conventions():
    assert scale_of("int3:maxabs:fp32", -3.5, 1.0) == 1.0  # 2·max/(2³ − 1)
    assert scale_of("int3:narrow:maxabs:fp32", -3.0, 1.0) == 1.0  # max/(2² − 1)
    assert scale_of("int8:narrow:maxabs:fp32", 127.0) == 1.0
    assert scale_of("fp8_e4m3:maxabs:fp32", -448.0) == 1.0
    assert scale_of("fp4_e2m1:maxabs:fp32", 6.0) == 1.0
    assert scale_of("ternary:maxabs:fp32", -2.0, 1.0) == 2.0


@pytest.mark.parametrize(
    ("weights", "scale", "zero"),
    [((-1.0, 2.0), 1.0, 1), ((1.0, 3.0), 1.0, 0), ((-3.0, -1.0), 1.0, 3), ((-6.0, 0.0), 2.0, 3), ((0.0, 0.0), 0.0, 0)],
)
def test_affine_covers_the_weights_and_zero(weights, scale, zero):
    scales = Grid.parse("int2:affine:maxabs:fp32").fit(torch.tensor([weights]))
    assert scales.scale.item() == scale
    assert scales.zero.item() == zero


def test_granularities_share_scales_as_they_say():
    matrix = torch.tensor([[3.5, -7.0, 14.0, 0.0, 28.0], [0.0, 0.0, 0.0, 0.0, 56.0]])
    fit = lambda grid: Grid.parse(f"int3:maxabs:fp32:{grid}").fit(matrix).scale.tolist()  # noqa: E731
    assert fit("tensor") == [[16.0]]
    assert fit("channel") == [[8.0], [16.0]]
    assert fit("group2") == [[2.0, 4.0, 8.0], [0.0, 0.0, 16.0]]
    assert fit("group99") == fit("channel")


@pytest.mark.parametrize("name", SCALE_DTYPES)
@settings(max_examples=200, deadline=None)
@given(scale=st.floats(1e-12, 6e4))
def test_stored_neighbours_enclose_the_scale_tightly(name, scale):
    kind = SCALE_DTYPES[name]
    wished = torch.tensor([min(scale, kind.largest)], dtype=torch.float64)
    below, above = kind.below(wished), kind.above(wished)
    assert below <= wished <= above
    for stored in (below, above):
        assert torch.equal(kind.load(kind.store(stored.float())).double(), stored)
    middle = (below + above) / 2
    if below != above:  # nothing storable lies between them
        assert kind.above(middle) == above
        assert kind.below(middle) == below


@pytest.mark.parametrize("name", ["fp16", "bf16", "fp32", "e5m2", "e8m0"])
def test_rounding_the_scale_up_clips_nothing_where_rounding_to_nearest_would(name):
    grid = Grid.parse(f"int8:narrow:maxabs:{name}")
    matrix = torch.rand(500, 1) + 0.5  # one weight a channel: it is the maximum
    exact = matrix.double() / 127
    assert (grid.fit(matrix).scale.double() >= exact).all()
    if name != "e8m0":
        nearest = exact.to(SCALE_DTYPES[name].stored_as).double()
        assert (nearest < exact).any(), "the negative twin: rounding to nearest clips some"


def test_too_large_scales_name_the_remedy():
    with pytest.raises(GridError, match=r"does not fit fp16 scales .*65504.*use fp32 scales"):
        Grid.parse("int2").fit(torch.full((1, 2), 2e5))
    assert scale_of("int2:maxabs:fp32", 1.5e5) == 1e5


def test_the_largest_fp16_scale_still_fits():
    assert float(stored_above(torch.tensor([65504.0], dtype=torch.float64), "fp16")) == 65504.0
    with pytest.raises(GridError, match="fp16"):
        stored_above(torch.tensor([65505.0], dtype=torch.float64), "fp16")


@pytest.mark.parametrize("grid", ["int3", "int4:affine", "binary", "ternary", "fp8_e4m3", "fp4_e2m1", "int3:bf16"])
@pytest.mark.parametrize("size", [1e-9, 1e-30, 1e-44, 3e38])
def test_extreme_weights_give_finite_results(grid, size):
    matrix = size * torch.linspace(-1, 1, 24).reshape(2, 12)
    if size == 3e38:
        grid = grid.removesuffix(":bf16") + ":fp32"
    result = Grid.parse(grid).quantize(matrix)
    assert result.scales.scale.isfinite().all()
    restored = result.dequantize()
    assert restored.isfinite().all()
    assert (restored.double() - matrix.double()).norm() <= matrix.double().norm() * (1 + 1e-6)


def test_fp32_scales_follow_tiny_weights():
    matrix = 1e-30 * torch.randn(4, 50)
    error = (Grid.parse("int8:fp32").quantize(matrix).dequantize().double() - matrix.double()).norm()
    assert error < 0.01 * matrix.double().norm()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("grid", ["int3", "binary", "fp16", "fp8_e4m3"])
def test_weights_must_be_finite(grid, bad):
    matrix = torch.ones(3, 4)
    matrix[1, 2] = bad
    with pytest.raises(GridError, match="1 of 12 weights are NaN or Inf"):
        Grid.parse(grid).fit(matrix)


@pytest.mark.parametrize("matrix", [torch.ones(3), torch.ones(0, 4), torch.ones(2, 2, 2), torch.ones(2, 2).int()])
def test_only_floating_matrices_are_taken(matrix):
    with pytest.raises(GridError, match=r"expected a floating-point matrix \(channels, fan_in\)"):
        Grid.parse("int3").fit(matrix)
