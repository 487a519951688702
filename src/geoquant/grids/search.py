"""Which scale minimises the squared rounding error of a row?

The error as a function of the scale has a local minimum wherever one weight changes its level, so no
descent alone finds the best. A search here

1. starts from the max-abs scale, so it is never worse than that one;
2. sweeps scales geometrically, from beyond the range of the weights down to where even average weights
   would clip, and again finely around the winner; for affine grids the ends of the range
   shrink, together and apart, and the zero point moves;
3. polishes by alternating least squares (codes for the scale, scale for the codes).

Every candidate is first rounded to a number that the scale dtype holds: what is compared is what is stored.
For formats of few levels the sweep is replaced by the exact optimum (`geoquant.grids.exact`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from geoquant.grids.exact import best_scale, is_exact
from geoquant.grids.fitting import Rows, inverse

_POLISH = 8
_RANGES = 24  # shrunken ranges tried for affine grids before their ends move apart


@dataclass(eq=False)
class Best:
    """The best scale (and zero point) of each row so far, and the error it leaves; see `Rows` for units."""

    scale: Tensor
    zero: Tensor | None
    error: Tensor

    @staticmethod
    def start(rows: Rows, scale: Tensor, zero: Tensor | None) -> Best:
        """Begin with a given scale."""
        return Best(scale, zero, rows.error(scale, zero))

    def offer(self, rows: Rows, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        """Take over `scale` (a stored number) and `zero` in the rows where they do better; return where."""
        error = rows.error(scale, zero)
        better = error < self.error
        self.scale = torch.where(better, scale, self.scale)
        self.error = torch.where(better, error, self.error)
        if zero is not None and self.zero is not None:
            self.zero = torch.where(better, zero, self.zero)
        return better


Search = Callable[[Rows, Tensor, Tensor | None], Best]


def least_error(rows: Rows, scale: Tensor, zero: Tensor | None) -> Best:
    """Search positive scales, from the max-abs `scale` (rows,) and `zero` on."""
    best = Best.start(rows, scale, zero)
    if zero is not None:
        _shrink_range(rows, best)
        _move_zero(rows, best)
    elif is_exact(rows):
        _offer_both(rows, best, best_scale(rows, 1))
    else:
        _sweep(rows, best, scale, 1)
    _polish(rows, best)
    return best


def least_error_signed(rows: Rows, scale: Tensor, zero: Tensor | None) -> Best:
    """Search negative scales too: they flip a level set whose ends differ, a free choice per row.

    Full-range integers are the case in point: some rows need the extra level above, some below. Where the
    levels are symmetric, or a zero point shifts them anyway, this is `least_error`.
    """
    best = least_error(rows, scale, zero)
    levels = rows.format.levels
    if zero is not None or levels is None or torch.equal(levels, -levels.flip(0)):
        return best
    flipped = Best.start(rows, -scale, None)
    if is_exact(rows):
        _offer_both(rows, flipped, best_scale(rows, -1))
    else:
        _sweep(rows, flipped, scale, -1)
    _polish(rows, flipped)
    best.offer(rows, flipped.scale)
    return best


SEARCHES: dict[str, Search] = {"mse": least_error, "mse-signed": least_error_signed}


def _stored(rows: Rows, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two stored neighbours of each scale, of its own sign."""
    sign, size = scale.sign(), scale.abs()
    return sign * rows.below(size), sign * rows.above(size)


def _offer_both(rows: Rows, best: Best, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    below, above = _stored(rows, scale)
    return best.offer(rows, below, zero) | best.offer(rows, above, zero)


def _sweep(rows: Rows, best: Best, max_abs: Tensor, sign: int) -> None:
    """Offer scales from twice max-abs down to where average weights clip, then finely around the best.

    Scales beyond max-abs leave end levels unused and pay where levels are unevenly spaced (floats) or
    weights are few. Short rows have rougher errors and cost less, so they get more candidates.
    """
    count = max(64, min(256, (1 << 13) // rows.weights.shape[1]))
    average = rows.weights.abs().mean(1).double() / rows.format.reach
    high, low = 2.1 * max_abs, torch.minimum(0.2 * max_abs, 0.5 * average)
    spacing = torch.where(low > 0, (low / high) ** (1 / (count - 1)), 1.0)
    for steps, start in ((torch.arange(count), None), (torch.linspace(-1.5, 1.5, count // 2), best)):
        origin = high if start is None else start.scale.abs()
        for scale in sign * rows.below(origin * spacing ** steps.to(origin)[:, None]):
            best.offer(rows, scale)


def _shrink_range(rows: Rows, best: Best) -> None:
    """Offer ranges whose ends shrink together, then apart."""
    ends = torch.stack([rows.weights.amin(1).clamp(max=0), rows.weights.amax(1).clamp(min=0)]).double()
    chosen = ends
    for step in range(_RANGES):
        chosen = _offer_range(rows, best, chosen, ends * (1.05 * 0.1 ** (step / (_RANGES - 1))))
    for spacing in (0.87, 0.95):
        for end in (0, 1, 0, 1):
            centre = chosen
            for step in (-2, -1, 1, 2):
                moved = centre.clone()
                moved[end] *= spacing**step
                chosen = _offer_range(rows, best, chosen, moved)


def _move_zero(rows: Rows, best: Best) -> None:
    """Offer nearby zero points, each at scales around the best: with few levels the best pair lies apart."""
    scale, zero = best.scale, best.zero
    assert zero is not None
    factors = 1.09 ** torch.arange(-4, 5, dtype=torch.float64, device=scale.device)
    candidates = rows.below(scale * factors[:, None])
    for shift in range(-2, 3):
        moved = (zero + shift).clamp(0, int(2 * rows.format.reach))
        for candidate in candidates:
            best.offer(rows, candidate, moved)


def _offer_range(rows: Rows, best: Best, chosen: Tensor, ends: Tensor) -> Tensor:
    """Offer the grid that covers `ends` (2, rows); return the better ends of `chosen` and `ends`."""
    low, high = ends
    steps = 2 * rows.format.reach
    scale = rows.below((high - low) / steps)
    zero = (-low * inverse(scale)).round().clamp(0, steps).int()
    return torch.where(best.offer(rows, scale, zero), ends, chosen)


def _polish(rows: Rows, best: Best) -> None:
    """Alternate codes and scale until no row improves."""
    for _ in range(_POLISH):
        if not bool(_offer_both(rows, best, rows.least_squares(best.scale, best.zero), best.zero).any()):
            break
