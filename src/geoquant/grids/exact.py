"""What is the best scale of all, for formats of few levels?

As the scale s falls from infinity, every weight climbs from the level nearest zero outwards, and it changes
its level where |w|/s passes the middle of two levels. Between two such events the codes q are fixed and the
best error over s is Σhw² − A²/B with A = Σ h w q, B = Σ h q². So sort all events, accumulate A and B, and
take the largest A²/B: its scale A/B cannot be beaten by any scale. (Should A/B lie outside the stretch its
codes belong to, its own nearest codes do better still, and belong to a stretch that was also looked at.)

Work and memory are weights × (levels per sign): made for few levels, or short rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from geoquant.grids.fitting import Rows

_FEW_LEVELS = 4
_SHORT_ROW = 1 << 13  # length · levels² of the rows for which the exact way costs no more than a sweep
_LONGEST_ROW = 1 << 20
_EVENTS = 1 << 20  # events held in memory at once, about 60 bytes each


def is_exact(rows: Rows) -> bool:
    """Whether `best_scale` is worth its work: at most four levels, or rows so short that their error is rough.

    On long rows the error is so smooth in the scale that a sweep finds the same minimum.
    """
    levels, length = rows.format.levels, rows.weights.shape[1]
    if levels is None or length > _LONGEST_ROW:
        return False
    # A weight keeps to the levels of its own sign if those include 0, or start equally far from it.
    keeps_sign = bool(levels[levels <= 0].max() + levels[levels >= 0].min() == 0)
    return keeps_sign and (len(levels) <= _FEW_LEVELS or length * len(levels) ** 2 <= _SHORT_ROW)


def best_scale(rows: Rows, sign: int) -> Tensor:
    """Return the scale of sign `sign` that minimises the error of each row before it is rounded: (rows,) float64.

    >>> from geoquant.grids.formats import Ternary
    >>> weights = torch.tensor([[1.0, 0.8, -0.9, 0.1]])
    >>> rows = Rows.of(Ternary(), "fp32", weights, None)
    >>> round(float(best_scale(rows, 1) * rows.unit), 6)  # the mean of the three that are kept
    0.9
    """
    ladders = _ladders(rows)
    size = max(1, _EVENTS // (rows.weights.shape[1] * max(1, ladders[0].shape[1])))
    parts = torch.split(rows.weights, size)
    roots = [None] * len(parts) if rows.root is None else torch.split(rows.root, size)
    return sign * torch.cat([_best_of(ladders, sign * part, root) for part, root in zip(parts, roots, strict=True)])


def _best_of(ladders: tuple[Tensor, Tensor, Tensor, Tensor], weights: Tensor, root: Tensor | None) -> Tensor:
    """Return the best positive scale of each row of `weights` (rows, length)."""
    middle, gap, square_gap, start = ladders
    magnitude = weights.abs()
    importance = magnitude.new_ones(()).double() if root is None else root.double().square()
    side = (weights < 0).long()  # which ladder a weight climbs
    events = (magnitude[..., None] / middle[side]).flatten(1)
    order = events.argsort(1, descending=True)
    first, second = importance * magnitude, importance.expand(magnitude.shape)
    cross = _accumulate(first, gap[side], start[side], order)
    square = _accumulate(second, square_gap[side], start.square()[side], order)
    best = torch.where(square > 0, cross.square() / square, 0.0).argmax(1, keepdim=True)
    cross, square = cross.gather(1, best)[:, 0], square.gather(1, best)[:, 0]
    return torch.where(square > 0, cross / square, 0.0)


def _ladders(rows: Rows) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return, for positive and negative weights: middles, gaps, gaps of squares (2, steps), and first levels (2,).

    The shorter ladder is filled up with steps at infinity that change nothing.
    """
    levels = rows.format.levels
    assert levels is not None
    climbs = [levels[levels >= 0], -levels[levels <= 0].flip(0)]
    steps = max(len(climb) for climb in climbs) - 1
    table = torch.zeros(3, 2, steps, dtype=torch.float64)
    table[0] = torch.inf
    for side, climb in enumerate(climbs):
        rungs = len(climb) - 1
        table[0, side, :rungs] = (climb[1:] + climb[:-1]) / 2
        table[1, side, :rungs] = climb.diff()
        table[2, side, :rungs] = climb.square().diff()
    table = table.to(rows.weights.device)
    first = torch.stack([climb[0] for climb in climbs]).to(rows.weights.device)
    return table[0].float(), table[1], table[2], first


def _accumulate(amount: Tensor, steps: Tensor, start: Tensor, order: Tensor) -> Tensor:
    """Return Σ amount · level before each event and after the last: (rows, events + 1) float64."""
    before = (amount * start).sum(1, keepdim=True)
    changes = (amount[..., None] * steps).flatten(1).gather(1, order)
    return torch.cat([before, changes], 1).cumsum(1)
