"""Where can the values of two networks lie, and how far apart, when the input runs over a box?

A `Form` is the set {center + Σ_k e_k·symbols_k + s : |e_k| ≤ 1, |s| ≤ slack, ‖s‖₂ ≤ ball}: a zonotope plus a remainder
that is bounded per element and in norm. The symbols e_k are shared: by the elements of one tensor, by the float value x
and by the difference d = x̂ − x. Sharing is what makes a pair tight, since d = (Ŵ − W)x + … then cancels where x does.

All numbers are float64. Whatever rounding could have changed goes into the remainder, so a form holds in exact
arithmetic; its norm is what keeps rounding small in deep networks, where |W|·slack alone grows by tens per layer.
Without symbols a form is an interval, and the same code gives plain interval bounds. Sources: zonotopes for networks,
DeepZ (Singh et al., NeurIPS 2018); the extra box, hybrid zonotopes (Mirman et al., ICML 2018); differences of two
networks, ReluDiff (Paulsen et al., arXiv 2001.03662).

Where the answer stops: a dense symbol costs one number per element of the tensor.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from geoquant.bounds.outward import gamma, raised

_CHUNK = 256


@dataclass(frozen=True)
class Form:
    """One affine form with a remainder.

    Attributes:
        center: float64, the shape of the network's tensor, batch size 1 included.
        symbols: float64, (k, *center.shape).
        slack: float64, the shape of center: bound of the remainder per element; at least 0.
        ball: bound of the remainder's 2-norm; at least 0.
    """

    center: Tensor
    symbols: Tensor
    slack: Tensor
    ball: float

    @classmethod
    def tightened(cls, center: Tensor, symbols: Tensor, slack: Tensor, ball: float) -> Form:
        """Make a form, letting each bound of the remainder improve the other."""
        slack = slack.clamp_max(ball)
        return cls(center, symbols, slack, min(ball, length(slack)))

    @functools.cached_property
    def _reach(self) -> Tensor:
        return raised(_absolute_sum(self.symbols) + self.slack, len(self.symbols) + 1)

    def reach(self) -> Tensor:
        """Bound |value − center| for every element."""
        return self._reach

    def magnitude(self) -> Tensor:
        """Bound |center| + Σ_k|symbols_k| + slack for every element: what rounding errors scale with."""
        return raised(self.center.abs() + self.reach(), 2)

    def interval(self) -> tuple[Tensor, Tensor]:
        """Bound every element from below and from above."""
        return outward(self.center, self.reach())

    def map(self, function: Callable[[Tensor], Tensor], stretch: float = 1.0) -> Form:
        """Apply a linear map with coefficients ≥ 0 and of 2-norm at most `stretch`; its rounding is the caller's."""
        center = function(self.center)
        symbols = torch.vmap(function)(self.symbols) if len(self.symbols) else self.symbols
        symbols = symbols.reshape(len(self.symbols), *center.shape)
        return Form.tightened(center, symbols, function(self.slack), stretch * self.ball)


def length(vector: Tensor) -> float:
    """Bound the 2-norm of all elements together."""
    return float(raised(torch.linalg.vector_norm(vector), vector.numel()))


@dataclass(frozen=True)
class Pair:
    """The float network's value x, the difference d = x̂ − x, and the names of the symbols they share.

    Attributes:
        value: form of x.
        error: form of d; its symbols match those of `value` row by row.
        names: int64 (k,), increasing. Two tensors of one network share a symbol where they share its name.
    """

    value: Form
    error: Form
    names: Tensor

    def map(self, function: Callable[[Tensor], Tensor], stretch: float = 1.0) -> Pair:
        """Apply a linear map with coefficients ≥ 0 to both forms."""
        return Pair(self.value.map(function, stretch), self.error.map(function, stretch), self.names)


def outward(center: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """Return center − reach and center + reach, moved outward by what their own rounding can cost.

    >>> low, high = outward(torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64))
    >>> bool(low < 0.5), bool(high > 1.5), round(float(high - low), 9)
    (True, True, 1.0)
    """
    margin = gamma(4) * (center.abs() + reach)
    return center - reach - margin, center + reach + margin


def box(center: Tensor, radius: Tensor, symbols: int) -> Form:
    """Return the box {x : |x − center| ≤ radius} with one symbol per element that can move.

    Args:
        center: float64, with a batch dimension of 1.
        radius: float64, the shape of center; at least 0.
        symbols: at most so many; the elements that can move least stay in the remainder. 0 gives plain intervals.

    >>> form = box(torch.zeros(1, 3, dtype=torch.float64), torch.tensor([[1.0, 0.0, 2.0]], dtype=torch.float64), 9)
    >>> form.symbols.shape, [round(float(v), 6) for v in form.reach()[0]]
    (torch.Size([2, 1, 3]), [1.0, 0.0, 2.0])
    """
    flat = radius.flatten()
    places = flat.topk(min(symbols, len(flat))).indices.sort().values
    places = places[flat[places] > 0]
    rest = flat.clone()
    rest[places] = 0
    return Form.tightened(center, unit_rows(radius, places), rest.reshape(radius.shape), length(rest))


def loosened(form: Form, noise: Tensor) -> Form:
    """Add a further unknown vector, bounded by `noise` per element, to the remainder."""
    ball = (form.ball + length(noise)) * (1 + 1e-14)
    return Form.tightened(form.center, form.symbols, raised(form.slack + noise, 2), ball)


def unit_rows(values: Tensor, places: Tensor) -> Tensor:
    """Return one row per place, zero but for that place's entry of `values`; (len(places), *values.shape)."""
    rows = values.new_zeros(len(places), values.numel())
    rows[torch.arange(len(places)), places] = values.flatten()[places]
    return rows.reshape(len(places), *values.shape)


def add(left: Pair, right: Pair) -> Pair:
    """Add two pairs of the same shape (a residual connection), matching symbols by name."""
    names, where = torch.unique(torch.cat([left.names, right.names]), return_inverse=True)
    rows = where[: len(left.names)], where[len(left.names) :]
    forms = []
    for one, other in ((left.value, right.value), (left.error, right.error)):
        rounding = gamma(1) * (one.magnitude() + other.magnitude())
        slack = raised(one.slack + other.slack + rounding, 3)
        ball = (one.ball + other.ball + length(rounding)) * (1 + gamma(3))
        symbols = _aligned_sum(one, other, rows, len(names))
        forms.append(Form.tightened(one.center + other.center, symbols, slack, ball))
    return Pair(forms[0], forms[1], names)


def _aligned_sum(one: Form, other: Form, rows: tuple[Tensor, Tensor], count: int) -> Tensor:
    if len(one.symbols) == len(other.symbols) == count:
        return one.symbols + other.symbols
    symbols = one.symbols.new_zeros(count, *one.center.shape)
    symbols[rows[0]] = one.symbols
    symbols[rows[1]] += other.symbols
    return symbols


def _absolute_sum(symbols: Tensor) -> Tensor:
    # vector_norm takes |.| without a second copy of what may be gigabytes.
    if len(symbols) == 0:
        return symbols.new_zeros(symbols.shape[1:])
    total_length: Tensor = torch.linalg.vector_norm(symbols, ord=1, dim=0)
    return total_length


def absolute_sum_of_totals(pair: Pair) -> Tensor:
    """Return Σ_k |x's symbol k + d's symbol k| per element, in pieces so that no full copy is made."""
    result = torch.zeros_like(pair.value.center)
    for start in range(0, len(pair.names), _CHUNK):
        piece = slice(start, start + _CHUNK)
        result += (pair.value.symbols[piece] + pair.error.symbols[piece]).abs().sum(0)
    return result
