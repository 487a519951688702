"""How are many numbers distributed, when their scale is not known beforehand?

Numbers are counted by the upper half of their float32 pattern (that is, as bfloat16 rounded toward zero):
65,536 bins, as fine near zero as far from it, no wider than 0.8 % of the value. So one pass serves for bulk and
outliers alike, and quantiles inherit that relative error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from geoquant.errors import GeoquantError

_BINS = 1 << 16
_HALF = 1 << 15


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of the bins that are not empty, ascending.

    Attributes:
        low: (bins,), lower edges, float64.
        high: (bins,), upper edges.
        counts: (bins,), float64.
    """

    low: Tensor
    high: Tensor
    counts: Tensor

    def quantile(self, share: float) -> float:
        """Return the value below which `share` of the numbers lie, linear inside a bin.

        Raises:
            GeoquantError: `share` is outside [0, 1].
        """
        if not 0 <= share <= 1:
            raise GeoquantError(f"a quantile is asked for a share between 0 and 1, got {share}")
        sums = self.counts.cumsum(0)
        target = share * float(sums[-1])
        place = min(int(torch.searchsorted(sums, target)), len(sums) - 1)
        inside = float(self.counts[place])
        fraction = (target - float(sums[place]) + inside) / inside
        return float(self.low[place] + fraction * (self.high[place] - self.low[place]))

    @property
    def centres(self) -> Tensor:
        """(bins,), middles of the bins."""
        return (self.low + self.high) / 2

    def coarser(self, share: float) -> Histogram:
        """Join neighbouring bins while they stay narrower than `share` of their value; cheaper, as much less fine."""
        group = (self.centres.abs().log2() / math.log2(1 + share)).floor() * self.centres.sign()
        _, place = torch.unique_consecutive(group, return_inverse=True)
        first = torch.cat([torch.ones(1, dtype=torch.bool), place[1:] != place[:-1]])
        last = torch.cat([first[1:], torch.ones(1, dtype=torch.bool)])
        counts = torch.zeros(int(place[-1]) + 1, dtype=torch.float64).index_add_(0, place, self.counts)
        return Histogram(self.low[first], self.high[last], counts)

    def clip_error(self, low: float, high: float, levels: int) -> float:
        """Return the mean squared error of rounding to `levels` equally spaced levels over [low, high].

        As in integer grids, zero lies on a level: the range is shifted by less than half a step to make it so. Bins
        count as their centres.
        """
        centres = self.centres
        step = (high - low) / (levels - 1)
        if step <= 0:
            return float((self.counts * centres.square()).sum() / self.counts.sum())
        zero = round(-low / step)
        codes = ((centres / step).round() + zero).clamp(0, levels - 1)
        return float((self.counts * (centres - (codes - zero) * step).square()).sum() / self.counts.sum())


class Counter:
    """Counts numbers as they come.

    >>> counter = Counter()
    >>> counter.add(torch.tensor([-1.0, 0.0, 3.0, 3.0]))
    >>> histogram = counter.histogram()
    >>> histogram.low.tolist(), histogram.counts.tolist()
    ([-1.0078125, 0.0, 3.0], [1.0, 1.0, 2.0])
    """

    def __init__(self) -> None:
        self._counts = torch.zeros(_BINS, dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        """Count finite numbers of any shape."""
        pattern = values.detach().float().contiguous().flatten().view(torch.int32) >> 16
        # Two's complement puts negative patterns below zero but in the order of their size: turn them round.
        place = torch.where(pattern < 0, -1 - (pattern & (_HALF - 1)), pattern) + _HALF
        self._counts += torch.bincount(place, minlength=_BINS).double().cpu()

    def histogram(self) -> Histogram:
        """Return what was counted so far."""
        place = self._counts.nonzero().flatten()
        size = torch.where(place >= _HALF, place - _HALF, _HALF - 1 - place)
        near, far = _value(size), _value(size + 1)
        negative = place < _HALF
        low, high = torch.where(negative, -far, near), torch.where(negative, -near, far)
        return Histogram(low, high, self._counts[place])


def _value(pattern: Tensor) -> Tensor:
    return (pattern << 16).to(torch.int32).view(torch.float32).double()
