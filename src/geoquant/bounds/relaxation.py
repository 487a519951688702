"""What does a ReLU do to a pair (x, d = x̂ − x) of forms?

It is replaced by lines with error terms that cover it over the known intervals: one for relu(x), one for the difference
g(x, d) = relu(x + d) − relu(x).

The difference g lies between 0 and d. For any slope α in [0, 1],
g − αd = (1 − α)(relu(x̂) − relu(x)) + α(relu(−x̂) − relu(−x)), whose two brackets have the sign of d and of −d and are
bounded by d and by how far x and x̂ reach on either side of 0. Any α is sound; the one taken makes the error term small.

Where the answer stops: intervals of x, x̂ and d decide; what else the symbols know about a kink is not used.
"""

from __future__ import annotations

import torch
from torch import Tensor

from geoquant.bounds.outward import gamma, raised
from geoquant.bounds.pair_affine import Context
from geoquant.bounds.zonotope import Form, Pair, absolute_sum_of_totals, add, length, outward, unit_rows

# How much of the inherited width counts against a slope, beside its error term. Measured on MLP-2 and MLP-4: every
# value from 0 to 0.75 gives the same median gap within 3 %, 1 is three times worse.
_INHERITED = 0.25
# Error terms this much smaller than the largest stay slack: a symbol would cost memory and gain nothing.
_NEGLIGIBLE = 1e-9


def relu(pair: Pair, context: Context) -> Pair:
    """Push a pair through a ReLU.

    New error terms become symbols, the largest first, while the cap allows, and slack after that.
    """
    value, error = pair.value, pair.error
    low, high = value.interval()
    below, above = error.interval()
    slope, offset = _line(low, high)
    new_value = _stretched(value, slope, offset)
    stored_low, stored_high = _stored_interval(pair, low + below, high + above)
    alpha, top, bottom = _difference_line(low, high, below, above, stored_low, stored_high)
    middle = (top + bottom) / 2
    width = raised(torch.maximum(top - middle, middle - bottom), 2)
    new_error = _stretched(error, alpha, middle)
    return _with_terms(Pair(new_value, new_error, pair.names), offset, width, context)


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


def _difference_line(
    low: Tensor, high: Tensor, below: Tensor, above: Tensor, stored_low: Tensor, stored_high: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return α and the interval of relu(x + d) − relu(x) − αd."""
    rise, fall = above.relu(), (-below).relu()
    caps = (
        torch.minimum(rise, stored_high.relu()),  # relu(x̂) − relu(x) from above
        torch.minimum(fall, (-stored_low).relu()),  # relu(−x̂) − relu(−x) from above
        torch.minimum(rise, (-low).relu()),  # relu(−x) − relu(−x̂) from above
        torch.minimum(fall, high.relu()),  # relu(x) − relu(x̂) from above
    )
    up, up_mirror, down_mirror, down = caps
    spread = (above - below) / 2

    def interval(alpha: Tensor) -> tuple[Tensor, Tensor]:
        top = torch.maximum((1 - alpha) * up, alpha * up_mirror)
        bottom = torch.maximum(alpha * down_mirror, (1 - alpha) * down)
        return raised(top, 3) * (top > 0), -raised(bottom, 3) * (bottom > 0)

    half = torch.full_like(low, 0.5)
    balanced = (up / (up + up_mirror)).nan_to_num(0.5), (down / (down + down_mirror)).nan_to_num(0.5)
    # The width is convex and piecewise linear in α, so its minimum is at a kink or an end.
    candidates = torch.stack([half * 0, half * 2, half, *balanced])
    tops, bottoms = interval(candidates)
    score = (tops - bottoms) / 2 + _INHERITED * candidates * spread
    best = score.argmin(0, keepdim=True)
    alpha, top, bottom = (table.gather(0, best)[0] for table in (candidates, tops, bottoms))
    return alpha, top, bottom


def _stretched(form: Form, factor: Tensor, offset: Tensor) -> Form:
    """Return factor·form + offset, elementwise with 0 ≤ factor ≤ 1."""
    rounding = raised(gamma(3) * (factor * form.magnitude() + offset.abs()), 3)
    return Form.tightened(
        factor * form.center + offset,
        factor * form.symbols,
        raised(factor * form.slack + rounding, 2),
        form.ball * float(factor.max()) * (1 + 1e-14) + length(rounding),
    )


def _with_terms(pair: Pair, value_terms: Tensor, error_terms: Tensor, context: Context) -> Pair:
    """Add one independent error term per element to each form, as a symbol of its own where the cap allows.

    A remainder that was there is bounded per element too, so both become one symbol.
    """
    terms = torch.cat([(pair.value.slack + value_terms).flatten(), (pair.error.slack + error_terms).flatten()])
    count, room = value_terms.numel(), max(context.cap - len(pair.names), 0)
    places = terms.topk(min(room, len(terms))).indices
    places = places[terms[places] > _NEGLIGIBLE * terms.max()].sort().values
    in_value, in_error = places[places < count], places[places >= count] - count
    names = torch.cat([pair.names, context.fresh(len(places))])
    value = _extended(pair.value, value_terms, in_value, before=0, after=len(in_error))
    error = _extended(pair.error, error_terms, in_error, before=len(in_value), after=0)
    return Pair(value, error, names)


def _extended(form: Form, terms: Tensor, places: Tensor, before: int, after: int) -> Form:
    rows = unit_rows(raised(form.slack + terms, 1), places)
    shape = form.center.shape
    symbols = torch.cat([form.symbols, rows.new_zeros(before, *shape), rows, rows.new_zeros(after, *shape)])
    old, new = form.slack.flatten().clone(), terms.flatten().clone()
    old[places], new[places] = 0, 0
    rest = raised(old + new, 1).reshape(shape)
    return Form.tightened(form.center, symbols, rest, (form.ball + length(new)) * (1 + 1e-14))


def maximum(left: Pair, right: Pair, context: Context) -> Pair:
    """Push two pairs through the elementwise maximum, max(a, b) = a + relu(b − a)."""
    return add(left, relu(add(right, negated(left)), context))


def negated(pair: Pair) -> Pair:
    """Return the pair of −x and −d."""
    flipped = [Form(-form.center, -form.symbols, form.slack, form.ball) for form in (pair.value, pair.error)]
    return Pair(flipped[0], flipped[1], pair.names)
