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
from geoquant.grids.fitting import Rows, block_size, inverse

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

    def offer(self, rows: Rows, scales: Tensor, zeros: Tensor | None = None) -> Tensor:
        """Take over the best of `scales` (stored numbers) with `zeros` in the rows where it improves.

        Both are (candidates, rows). Returns which candidate each row took, −1 for none: (rows,).
        """
        taken = torch.full_like(self.error, -1, dtype=torch.long)
        size = max(1, block_size(scales.device) // rows.weights.numel())
        for start in range(0, len(scales), size):
            scale, zero = scales[start : start + size], None if zeros is None else zeros[start : start + size]
            error, index = rows.error(scale, zero).min(0)
            better = error < self.error
            self.error = torch.where(better, error, self.error)
            self.scale = torch.where(better, scale.gather(0, index[None])[0], self.scale)
            if zero is not None and self.zero is not None:
                self.zero = torch.where(better, zero.gather(0, index[None])[0], self.zero)
            taken = torch.where(better, start + index, taken)
        return taken


Search = Callable[[Rows, Tensor, Tensor | None], Best]


def least_error(rows: Rows, scale: Tensor, zero: Tensor | None) -> Best:
    """Search positive scales, from the max-abs `scale` (rows,) and `zero` on."""
    best = Best.start(rows, scale, zero)
    if zero is not None:
        _shrink_range(rows, best)
        _move_zero(rows, best)
    elif is_exact(rows):
        _offer_neighbours(rows, best, best_scale(rows, 1))
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
        _offer_neighbours(rows, flipped, best_scale(rows, -1))
    else:
        _sweep(rows, flipped, scale, -1)
    _polish(rows, flipped)
    best.offer(rows, flipped.scale[None])
    return best


SEARCHES: dict[str, Search] = {"mse": least_error, "mse-signed": least_error_signed}


def _offer_neighbours(rows: Rows, best: Best, scale: Tensor) -> Tensor:
    """Offer the two stored neighbours of each `scale` (rows,), of its own sign and the best zero point."""
    sign, size = torch.where(scale < 0, -1.0, 1.0), scale.abs()
    candidates = sign * torch.stack([rows.below(size), rows.above(size)])
    return best.offer(rows, candidates, None if best.zero is None else best.zero.expand(2, -1))


def _sweep(rows: Rows, best: Best, max_abs: Tensor, sign: int) -> None:
    """Offer scales from twice max-abs down to where average weights clip, then finely around the best.

    Scales beyond max-abs leave end levels unused and pay where levels are unevenly spaced (floats) or
    weights are few. Short rows have rougher errors and cost less, so they get more candidates.
    """
    count = max(64, min(128, (1 << 12) // rows.weights.shape[1]))
    average = rows.weights.abs().mean(1).double() / rows.format.reach
    high, low = 2.1 * max_abs, torch.minimum(0.2 * max_abs, 0.5 * average)
    spacing = torch.where(low > 0, (low / high) ** (1 / (count - 1)), 1.0)
    steps = torch.arange(count).to(high)[:, None]
    best.offer(rows, sign * rows.below(high * spacing**steps))
    steps = torch.linspace(-1.5, 1.5, count // 2).to(high)[:, None]
    best.offer(rows, sign * rows.below(best.scale.abs() * spacing**steps))


def _shrink_range(rows: Rows, best: Best) -> None:
    """Offer ranges whose ends shrink together, then apart."""
    ends = torch.stack([rows.weights.amin(1).clamp(max=0), rows.weights.amax(1).clamp(min=0)]).double()
    factors = 1.05 * torch.logspace(0, -1, _RANGES).to(ends)[:, None, None]
    chosen = _offer_ranges(rows, best, ends, factors * ends)
    for spacing in (0.87, 0.95):
        for end in (0, 1, 0, 1):
            moved = chosen.repeat(4, 1, 1)
            moved[:, end] *= torch.tensor([spacing**step for step in (-2, -1, 1, 2)]).to(ends)[:, None]
            chosen = _offer_ranges(rows, best, chosen, moved)


def _offer_ranges(rows: Rows, best: Best, chosen: Tensor, ends: Tensor) -> Tensor:
    """Offer the grids that cover `ends` (candidates, 2, rows); return the better of `chosen` (2, rows) and those."""
    low, high = ends.unbind(1)
    steps = 2 * rows.format.reach
    scales = rows.below((high - low) / steps)
    zeros = (-low * inverse(scales)).round().clamp(0, steps).int()
    taken = best.offer(rows, scales, zeros)
    picked = ends.gather(0, taken.clamp(min=0).expand(1, 2, -1))[0]
    return torch.where(taken >= 0, picked, chosen)


def _move_zero(rows: Rows, best: Best) -> None:
    """Offer nearby zero points, each at scales around the best: with few levels the best pair lies apart."""
    assert best.zero is not None
    count = max(9, min(33, (1 << 11) // rows.weights.shape[1]))
    factors = torch.logspace(-0.15, 0.15, count).to(best.scale)
    shifts = torch.arange(-2, 3, dtype=torch.int32, device=best.zero.device)
    scales = rows.below(best.scale * factors.repeat(5)[:, None])
    zeros = (best.zero + shifts.repeat_interleave(count)[:, None]).clamp(0, int(2 * rows.format.reach))
    best.offer(rows, scales, zeros)


def _polish(rows: Rows, best: Best) -> None:
    """Alternate codes and scale until no row improves."""
    for _ in range(_POLISH):
        taken = _offer_neighbours(rows, best, rows.least_squares(best.scale, best.zero))
        if not bool((taken >= 0).any()):
            break
