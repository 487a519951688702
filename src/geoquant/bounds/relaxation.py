"""What does a ReLU do to a pair (x, d = x̂ − x) of forms?

It is replaced by lines with error terms that cover it over the known intervals: one for relu(x), one for the difference
g = relu(x̂) − relu(x). For g there are two covers, and each element takes the one that costs less.

- Joint: g lies between 0 and d. For any slope α in [0, 1],
  g − αd = (1 − α)(relu(x̂) − relu(x)) + α(relu(−x̂) − relu(−x)), whose brackets have the sign of d and of −d and are
  bounded by d and by how far x and x̂ reach on either side of 0. It wins where d is small against the width of x.
- Apart: a line for relu(x̂) minus the line for relu(x), which shares its error term. It wins where x and x̂ are known
  closely, and is exact where neither crosses 0.

Where the answer stops: intervals of x, x̂ and d decide; what else the symbols know about a kink is not used.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geoquant.bounds.outward import gamma, raised
from geoquant.bounds.pair_affine import Context
from geoquant.bounds.zonotope import Form, Pair, absolute_sum_of_totals, add, length, loosened, outward, unit_rows

# How much of the inherited width counts against a slope α, beside its error term. Measured on MLP-2 and MLP-4: every
# value from 0 to 0.75 gives the same median gap within 3 %, 1 is three times worse.
_INHERITED = 0.25
# Error terms this small against their form's values stay in the remainder.
_NEGLIGIBLE = 1e-10


@dataclass(frozen=True)
class Cover:
    """g = on_error·d + on_value·x + middle ± width, and −shared·(the error term of relu(x)), per element."""

    on_error: Tensor
    on_value: Tensor
    middle: Tensor
    width: Tensor
    shared: Tensor

    @property
    def cost(self) -> Tensor:
        """Weigh the error terms."""
        return self.width + self.shared

    def or_else(self, other: Cover, use_other: Tensor) -> Cover:
        """Take `other` where `use_other` holds."""
        return Cover(
            *(torch.where(use_other, two, one) for one, two in zip(self._parts(), other._parts(), strict=True))
        )

    def _parts(self) -> tuple[Tensor, ...]:
        return self.on_error, self.on_value, self.middle, self.width, self.shared


def relu(pair: Pair, context: Context) -> Pair:
    """Push a pair through a ReLU.

    New error terms become symbols, the largest first, while the cap allows, and slack after that.
    """
    low, high = pair.value.interval()
    below, above = pair.error.interval()
    slope, offset = _line(low, high)
    stored_low, stored_high = _stored_interval(pair, low + below, high + above)
    joint = _joint_cover((low, high), (below, above), (stored_low, stored_high))
    apart = _apart_cover(slope, offset, stored_low, stored_high)
    cover = joint.or_else(apart, apart.cost <= joint.cost)
    value = _combined(pair.value, slope, offset)
    error = _combined(pair.error, cover.on_error, cover.middle, pair.value, cover.on_value)
    return _with_terms(Pair(value, error, pair.names), offset, cover, context)


def _stored_interval(pair: Pair, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Bound x̂ two ways and keep the better: from its own form, and from the intervals of x and d."""
    form_slack = raised(pair.value.slack + pair.error.slack, 2)
    reach = raised(absolute_sum_of_totals(pair) + form_slack, len(pair.names) + 3)
    rounding = gamma(4) * (pair.value.magnitude() + pair.error.magnitude())
    own_low, own_high = outward(pair.value.center + pair.error.center, raised(reach + rounding, 2))
    margin = gamma(4) * (low.abs() + high.abs())
    return torch.maximum(own_low, low - margin), torch.minimum(own_high, high + margin)


def _line(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return slope λ and offset μ with |relu(x) − λx − μ| ≤ μ on [low, high] (DeepZ: smallest area)."""
    crossing = (low < 0) & (high > 0)
    slope = torch.where(crossing, high / (high - low).clamp_min(1e-300), (low >= 0).double()).clamp(0, 1)
    gap = torch.maximum((1 - slope) * high, -slope * low)
    return slope, torch.where(crossing, raised(gap, 3) / 2, 0.0)


def _apart_cover(slope: Tensor, offset: Tensor, stored_low: Tensor, stored_high: Tensor) -> Cover:
    """Cover relu(x̂) and relu(x) by a line each; the second is the one that the value x takes."""
    stored_slope, stored_offset = _line(stored_low, stored_high)
    rounding = gamma(2) * (stored_offset + offset)
    return Cover(stored_slope, stored_slope - slope, stored_offset - offset, stored_offset + rounding, offset)


def _joint_cover(x: tuple[Tensor, Tensor], d: tuple[Tensor, Tensor], stored: tuple[Tensor, Tensor]) -> Cover:
    """Cover g = relu(x + d) − relu(x) by αd and an interval."""
    rise, fall = d[1].relu(), (-d[0]).relu()
    up = torch.minimum(rise, stored[1].relu())  # relu(x̂) − relu(x) from above
    up_mirror = torch.minimum(fall, (-stored[0]).relu())  # relu(−x̂) − relu(−x) from above
    down_mirror = torch.minimum(rise, (-x[0]).relu())  # relu(−x) − relu(−x̂) from above
    down = torch.minimum(fall, x[1].relu())  # relu(x) − relu(x̂) from above

    half = torch.full_like(rise, 0.5)
    balanced = (up / (up + up_mirror)).nan_to_num(0.5), (down / (down + down_mirror)).nan_to_num(0.5)
    # The width is convex and piecewise linear in α, so its minimum is at a kink or an end.
    alphas = torch.stack([half * 0, half * 2, half, *balanced])
    top = torch.maximum((1 - alphas) * up, alphas * up_mirror)
    bottom = torch.maximum(alphas * down_mirror, (1 - alphas) * down)
    score = (top + bottom) / 2 + _INHERITED * alphas * (d[1] - d[0]) / 2
    best = score.argmin(0, keepdim=True)
    alpha, top, bottom = (table.gather(0, best)[0] for table in (alphas, top, bottom))
    width = (top + bottom) / 2 + gamma(8) * (top + bottom)
    nothing = torch.zeros_like(alpha)
    return Cover(alpha, nothing, (top - bottom) / 2, width, nothing)


def _combined(
    form: Form, factor: Tensor, offset: Tensor, other: Form | None = None, other_factor: Tensor | None = None
) -> Form:
    """Return factor·form + other_factor·other + offset, elementwise, factors at most 1 in size."""
    center, symbols = factor * form.center + offset, factor * form.symbols
    slack, ball = factor * form.slack, float(factor.max()) * form.ball
    volume = factor * form.magnitude() + offset.abs()
    if other is not None and other_factor is not None and bool(other_factor.any()):
        size = other_factor.abs()
        center, symbols = center + other_factor * other.center, symbols + other_factor * other.symbols
        slack, ball = slack + size * other.slack, ball + float(size.max()) * other.ball
        volume = volume + size * other.magnitude()
    rounding = raised(gamma(4) * volume, 3)
    return Form.tightened(center, symbols, raised(slack + rounding, 4), (ball + length(rounding)) * (1 + 1e-14))


def _with_terms(pair: Pair, value_terms: Tensor, cover: Cover, context: Context) -> Pair:
    """Add one independent error term per element to each form, as a symbol of its own where the cap allows.

    A remainder that was there is bounded per element too, so both become one symbol e. Where the error form shares the
    value's term t, and t + s = (bound of both)·e, it gets −t = −(bound of both)·e + s.
    """
    total, own = raised(pair.value.slack + value_terms, 1), raised(pair.error.slack + cover.width, 1)
    # Terms count relative to their form: d is small against x, and so are its errors. Those at the level of rounding
    # would cost memory and gain nothing.
    terms = torch.cat([_relative(total, pair.value), _relative(own, pair.error)])
    count, room = total.numel(), max(context.limit(total.numel()) - len(pair.names), 0)
    places = terms.topk(min(room, len(terms))).indices
    places = places[terms[places] > 0].sort().values
    in_value, in_error = places[places < count], places[places >= count] - count
    names = torch.cat([pair.names, context.fresh(len(places))])
    rows = unit_rows(total, in_value)
    value = _extended(pair.value, value_terms, in_value, [rows, rows.new_zeros(len(in_error), *total.shape)])
    sharing = cover.shared > 0
    shared = unit_rows(torch.where(sharing, -total, 0.0), in_value)
    error = _extended(pair.error, cover.width, in_error, [shared, unit_rows(own, in_error)])
    extra = cover.shared.flatten().clone()
    extra[in_value] = (sharing * pair.value.slack).flatten()[in_value]
    return Pair(value, loosened(error, extra.reshape(total.shape)), names)


def _relative(terms: Tensor, form: Form) -> Tensor:
    worth = terms > _NEGLIGIBLE * form.magnitude().max()
    return torch.where(worth, terms / terms.sum(), 0.0).flatten()


def _extended(form: Form, terms: Tensor, places: Tensor, rows: list[Tensor]) -> Form:
    """Add rows of symbols; the terms whose places got none stay in the remainder."""
    old, new = form.slack.flatten().clone(), terms.flatten().clone()
    old[places], new[places] = 0, 0
    rest = raised(old + new, 1).reshape(form.center.shape)
    symbols = torch.cat([form.symbols, *rows])
    return Form.tightened(form.center, symbols, rest, (form.ball + length(new)) * (1 + 1e-14))


def maximum(left: Pair, right: Pair, context: Context) -> Pair:
    """Push two pairs through the elementwise maximum, max(a, b) = a + relu(b − a)."""
    return add(left, relu(add(right, negated(left)), context))


def negated(pair: Pair) -> Pair:
    """Return the pair of −x and −d."""
    flipped = [Form(-form.center, -form.symbols, form.slack, form.ball) for form in (pair.value, pair.error)]
    return Pair(flipped[0], flipped[1], pair.names)
