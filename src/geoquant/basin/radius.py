"""How far can one go in a direction before the loss has risen by τ, and how well is that known?

The first crossing of τ, bracketed by doubling and narrowed by interpolation: a handful of evaluations. It is the first
one that the evaluated points show: a wall thinner than their distance can be stepped over. The interval comes from the
samples' spread: its ends are where the rise plus (minus) z standard errors crosses τ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

from geoquant.errors import GeoquantError
from geoquant.evaluation import Mean

LEAST = 2.0**-12
"""Radii below this share of the direction count as zero."""
ENDS = 3.0
"""The interval's ends, always on the safe side, are narrowed so many times less than the radius."""


@dataclass(frozen=True)
class Radius:
    """A radius in multiples of the direction.

    Attributes:
        value: where the mean rise crosses τ; `limit` when it does not up to there.
        low, high: ends of the interval; `high` is `limit` where it is not closed.
        limit: how far was looked.
        confidence: of the interval, pointwise.
        evaluations: how many points were evaluated.
    """

    value: float
    low: float
    high: float
    limit: float
    confidence: float
    evaluations: int

    @property
    def open(self) -> bool:
        """Whether no crossing was found up to the limit."""
        return self.value >= self.limit

    def times(self, factor: float) -> Radius:
        """Return the same radius in another unit."""
        value, low, high, limit = (factor * each for each in (self.value, self.low, self.high, self.limit))
        return Radius(value, low, high, limit, self.confidence, self.evaluations)

    def __str__(self) -> str:
        sign = "≥ " if self.open else ""
        return f"{sign}{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def find_radius(
    rise: Callable[[float], Mean],
    tolerance: float,
    *,
    limit: float = 8.0,
    confidence: float = 0.95,
    relative: float = 0.05,
    start: float = 1.0,
) -> Radius:
    """Find where the rise of the loss first exceeds `tolerance`.

    Args:
        rise: of the distance, in multiples of the direction; 0 at 0. What is not finite counts as beyond the wall.
        tolerance: τ, in the unit of the rise.
        limit: look no further.
        confidence: of the interval.
        relative: width of the final bracket, as a share of the radius.
        start: first point to look at.

    Raises:
        GeoquantError: a setting that makes no sense.

    >>> parabola = lambda x: Mean(0.5 * 4.0 * x * x, 0.0, 100)  # λ = 4, τ = 0.5: √(2τ/λ) = ½
    >>> found = find_radius(parabola, 0.5, relative=1e-6)
    >>> round(found.value, 5), found.open
    (0.5, False)
    """
    if not (tolerance > 0 and 0 < start <= limit and 0 < confidence < 1 and 0 < relative < 1):
        raise GeoquantError(
            f"tolerance={tolerance}, start={start}, limit={limit}, confidence={confidence}, relative={relative} make "
            "no sense; a tolerance is a positive rise of the loss, such as 0.05 nats"
        )
    search = _Search(rise, tolerance, limit)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    low, high = search.crossing(0.0, start, relative)
    value = limit if high is None else (low + high) / 2
    first, _ = search.crossing(z, start, ENDS * relative)
    _, last = search.crossing(-z, start, ENDS * relative)
    ends = min(first, value), limit if last is None else max(last, value)
    return Radius(value, *ends, limit, confidence, len(search.seen) - 1)


class _Search:
    """Brackets of several curves (mean plus z standard errors) over one set of evaluated points."""

    def __init__(self, rise: Callable[[float], Mean], tolerance: float, limit: float) -> None:
        self._rise, self._tolerance, self._limit = rise, tolerance, limit
        self.seen: dict[float, Mean] = {0.0: Mean(0.0, 0.0, 1)}

    def crossing(self, z: float, start: float, relative: float) -> tuple[float, float | None]:
        """Return a point inside and a near one outside; None when all up to the limit is inside."""
        while True:
            low, high = self._bracket(z)
            if high is None:
                if low >= self._limit:
                    return low, None
                self._look(min(max(2 * low, start), self._limit))
            elif high - low <= relative * high or high <= LEAST:
                return low, high
            else:
                self._look(self._between(low, high, z, relative))

    def _bracket(self, z: float) -> tuple[float, float | None]:
        """Return the last seen point before the first one outside, and that one."""
        low = 0.0
        for x in sorted(self.seen):
            if self._excess(x, z) > 0:
                return low, x
            low = x
        return low, None

    def _between(self, low: float, high: float, z: float, relative: float) -> float:
        """Guess the crossing: as if the rise grew with the square of the distance, but well inside the bracket."""
        below, above = self._excess(low, z), self._excess(high, z)
        if low == 0.0 and above > 8 * self._tolerance:
            return high / 4
        share = below / (below - above) if math.isfinite(above) and below < above else 0.5
        guess = math.sqrt(low * low + share * (high * high - low * low))
        margin = max(0.1 * (high - low), min(0.45 * relative * high, 0.4 * (high - low)))
        return min(max(guess, low + margin), high - margin)

    def _excess(self, x: float, z: float) -> float:
        found = self.seen[x]
        excess = found.value + z * found.stderr - self._tolerance
        return excess if math.isfinite(excess) else math.inf

    def _look(self, x: float) -> None:
        self.seen[x] = self._rise(x)
