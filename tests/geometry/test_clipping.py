"""Which range a static activation scale covers: laws of every method, and known answers by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from geoquant.geometry import RANGES, fit_scale, range_of
from geoquant.grids import RANGE_METHODS, ActivationGrid

WIDE = ("int8:affine", "int8", "int4:affine")


def heavy_tailed(seed: int = 0, positive: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(20_000, generator=generator)
    values[:5] *= 40.0
    return values.abs() if positive else values


@pytest.mark.parametrize("method", sorted(RANGES.names()))
@pytest.mark.parametrize("grid", WIDE)
@pytest.mark.parametrize("positive", [True, False])
def test_every_range_method(method: str, grid: str, positive: bool) -> None:
    """Laws: within what was seen; the same for a permutation; in units of the data."""
    values = heavy_tailed(positive=positive)
    format = ActivationGrid.parse(grid).with_range(method)
    low, high = RANGES[method](range_of([values]), format)
    reach = float(values.abs().max())
    assert -reach * 1.0001 <= low <= (1e-2 if positive else 0.0)
    assert 0 < high <= reach * 1.0001
    assert RANGES[method](range_of([values.flip(0)[:7000], values.flip(0)[7000:]]), format) == pytest.approx(
        (low, high)
    )
    doubled = RANGES[method](range_of([2 * values]), format)
    assert doubled == pytest.approx((2 * low, 2 * high), rel=0.02, abs=1e-6)


def test_methods_of_the_registry_are_those_that_grids_name() -> None:
    assert sorted(RANGE_METHODS) == RANGES.names()


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("grid", ["int4:affine", "int4", "int3:narrow", "fp8_e4m3"])
def test_mse_is_the_best_of_all_methods_and_of_a_scan(grid: str, positive: bool) -> None:
    values = heavy_tailed(positive=positive)
    seen = range_of([values])

    def error(low: float, high: float) -> float:
        base = ActivationGrid.parse(grid)
        return float((base.quantize(values, base.cover(low, high)) - values).square().mean())

    found = {}
    for method in RANGE_METHODS:
        found[method] = error(*RANGES[method](seen, ActivationGrid.parse(grid).with_range(method)))
    reach = float(values.abs().max())
    scan = min(error(0.0 if positive else -share * reach, share * reach) for share in [k / 400 for k in range(1, 401)])
    assert found["mse"] <= 1.01 * min(found.values())
    assert found["mse"] <= 1.02 * scan
    if grid != "fp8_e4m3":
        assert found["minmax"] > 3 * found["mse"], "the outliers must matter for this test to mean something"


def test_percentile_leaves_out_what_it_says() -> None:
    values = torch.arange(-500, 501).float()
    low, high = RANGES["percentile"](range_of([values]), ActivationGrid.parse("int8:percentile90"))
    assert low == pytest.approx(-450, rel=0.01)
    assert high == pytest.approx(450, rel=0.01)


def test_entropy_clips_outliers_and_keeps_a_uniform_distribution() -> None:
    grid = ActivationGrid.parse("int8:affine:entropy")
    uniform = torch.linspace(0, 1, 50_000)
    assert RANGES["entropy"](range_of([uniform]), grid)[1] == pytest.approx(1.0, rel=0.05)
    values = heavy_tailed(positive=True)
    assert RANGES["entropy"](range_of([values]), grid)[1] < 0.3 * float(values.max())


def test_nothing_but_zeros_has_scale_zero() -> None:
    for method in RANGE_METHODS:
        assert fit_scale(range_of([torch.zeros(5)]), ActivationGrid.parse("int8").with_range(method)).scale == 0


def test_a_spike_at_zero_does_not_shrink_the_entropy_range() -> None:
    values = torch.randn(50_000, generator=torch.Generator().manual_seed(0))
    spike = torch.cat([values.abs(), torch.zeros(500_000)])
    ends = {
        name: RANGES["entropy"](range_of([each]), ActivationGrid.parse("int4:affine:entropy"))
        for name, each in {"plain": values.abs(), "spike": spike}.items()
    }
    assert ends["spike"] == pytest.approx(ends["plain"], rel=0.05)
