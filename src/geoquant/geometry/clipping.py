"""Which range of the values seen should a static activation scale cover?

Min-max clips nothing and lets one outlier coarsen everything; a percentile gives up a fixed share; least squared
error weighs clipping against coarseness for the grid's own levels; entropy (Migacz, "8-bit inference with TensorRT",
GTC 2017) keeps the distribution's shape instead. All read the histogram of `geoquant.geometry.ActivationRange` and know
nothing of what the network does with the values.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from geoquant.geometry.ranges import ActivationRange, best_share
from geoquant.grids import ActivationGrid, ActivationScale
from geoquant.registry import Registry

Ends = tuple[float, float]
RangeMethod = Callable[[ActivationRange, ActivationGrid], Ends]

RANGES: Registry[RangeMethod] = Registry("range")


def fit_scale(seen: ActivationRange, grid: ActivationGrid) -> ActivationScale:
    """Return the static scale of `grid` for the values `seen`, by the grid's own range method.

    >>> from geoquant.geometry import range_of
    >>> fit_scale(range_of([torch.tensor([-1.0, 0.5, 3.0])]), ActivationGrid.parse("int2:affine:minmax"))
    ActivationScale(scale=1.3333333730697632, zero=1)
    """
    return grid.cover(*RANGES[grid.method](seen, grid))


@RANGES.add("minmax")
def _everything(seen: ActivationRange, grid: ActivationGrid) -> Ends:
    return seen.lowest, seen.highest


@RANGES.add("percentile")
def _percentile(seen: ActivationRange, grid: ActivationGrid) -> Ends:
    return seen.percentile(grid.percent)


@RANGES.add("mse")
def _least_error(seen: ActivationRange, grid: ActivationGrid) -> Ends:
    if grid.format.has_zero_point:
        return seen.mse_clip(int(grid.bits))
    reach = max(abs(seen.lowest), abs(seen.highest))
    values, counts = seen.histogram.centres.float(), seen.histogram.counts

    def error(share: float) -> float:
        rounded = grid.quantize(values, grid.cover(-share * reach, share * reach))
        return float((counts * (rounded - values).double().square()).sum())

    best = best_share(error)
    return -best * reach, best * reach


@RANGES.add("entropy")
def _least_entropy(seen: ActivationRange, grid: ActivationGrid) -> Ends:
    """Return the clip at which the quantized histogram is nearest to the clipped one in KL divergence."""
    reach = max(abs(seen.lowest), abs(seen.highest))
    levels = 2 ** math.ceil(grid.bits)
    if reach == 0:
        return 0.0, 0.0
    bins, low = _uniform_bins(seen, reach, grid.format.has_zero_point)
    high = len(bins) - low  # bins on each side of zero; either may be none
    most = max(low, high)
    fewest = min(most, max(levels // 2, 8))
    places = sorted({round(fewest * (most / fewest) ** (step / 80)) for step in range(81)})
    best = min(places, key=lambda place: _divergence(bins, low - min(low, place), low + min(high, place), levels))
    return -min(best, low) / most * reach, min(best, high) / most * reach


_BINS = 4096


def _uniform_bins(seen: ActivationRange, reach: float, one_sided: bool) -> tuple[Tensor, int]:
    """Return counts in bins of equal width, and how many of them lie below zero.

    Zeros, of which a ReLU gives many, are left out: every grid holds zero exactly, and their spike would be all that
    a divergence of few levels sees.
    """
    width = reach / _BINS
    low = math.ceil(-min(seen.lowest, 0.0) / width - 1e-9) if one_sided else _BINS
    high = math.ceil(max(seen.highest, 0.0) / width - 1e-9) if one_sided else _BINS
    edges = torch.arange(-low, high + 1, dtype=torch.float64) * width
    shape = seen.histogram
    # Cumulative counts are linear inside the histogram's own bins.
    knots = torch.stack([shape.low, shape.high], 1).flatten()
    counts = torch.where((shape.low == 0) | (shape.high == 0), 0.0, shape.counts)
    sums = counts.cumsum(0)
    heights = torch.stack([sums - counts, sums], 1).flatten()
    place = torch.searchsorted(knots, edges).clamp(1, len(knots) - 1)
    span = (knots[place] - knots[place - 1]).clamp(min=1e-300)
    share = ((edges - knots[place - 1]) / span).clamp(0, 1)
    cumulative = heights[place - 1] + share * (heights[place] - heights[place - 1])
    cumulative[0], cumulative[-1] = 0.0, sums[-1]
    return cumulative.diff(), low


def _divergence(bins: Tensor, start: int, stop: int, levels: int) -> float:
    """Return KL(clipped ‖ quantized) of the counts in [start, stop), with the rest moved to the ends."""
    inside = bins[start:stop]
    clipped = inside.clone()
    clipped[0] += bins[:start].sum()
    clipped[-1] += bins[stop:].sum()
    cell = torch.arange(len(inside)) * levels // len(inside)
    filled = (inside > 0).double()
    zeros = torch.zeros(levels, dtype=torch.float64)
    mean = zeros.index_add(0, cell, inside) / zeros.index_add(0, cell, filled).clamp(min=1)
    p = clipped / clipped.sum()
    q = mean[cell] * filled
    q = (q / q.sum().clamp(min=1e-300)).clamp(min=1e-12)
    there = p > 0
    return float((p[there] * (p[there] / q[there]).log()).sum())
