"""What does an affine layer do to a pair (x, d = x̂ − x) of forms?

It is exact: x becomes Wx + b and d becomes Ŵd + (Ŵ − W)x + (b̂ − b), symbol by symbol. Only rounding adds to the
remainder: that of the bound's own float64 arithmetic, and that of the two networks when they run.

Where the answer stops: rounding is bounded for sums in any order, see `outward` for what that leaves out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from geoquant.bounds.graph import Constant
from geoquant.bounds.operator_norms import nonnegative_norm_bound
from geoquant.bounds.outward import gamma, raised
from geoquant.bounds.zonotope import Form, Pair, length

Linear = Callable[[Tensor, Tensor], Tensor]


# Covers the handful of scalar operations by which norms of remainders are combined.
_SCALAR = 1 + 1e-14
_MEMORY = 2**31


@dataclass(frozen=True)
class AffineMap:
    """A linear map with a bias, as two networks hold it.

    Attributes:
        apply: (weight, x) → the linear map without bias; x has any number of leading batch dimensions, at least one.
        weight: exact and stored weight.
        bias: exact and stored bias, shaped to broadcast against the output; None for none.
        terms: rounded operations behind one output.
        norm: weight → upper bound of the spectral norm of x ↦ apply(weight, x).
        uncertain: whether weight and bias are themselves results of rounded arithmetic (folded statistics).
        volume: what the rounding error of the bias scales with; None for the size of the bias.
        keep: whether the norms are worth keeping for the next input.
    """

    apply: Linear
    weight: Constant
    bias: Constant | None
    terms: int
    norm: Callable[[Tensor], float]
    uncertain: bool = False
    volume: Constant | None = None
    keep: bool = False

    @property
    def change(self) -> Tensor:
        """Stored weight − exact weight."""
        difference: Tensor = self.weight.stored - self.weight.exact
        return difference


@dataclass
class Context:
    """What the propagations of one pair of networks share.

    Attributes:
        cap: most symbols a tensor may have, None for as many as fit into 2 GiB for its pair of forms; further error
            terms stay in the remainder.
        unit: unit roundoff of the arithmetic in which the two networks run.
        used: symbol names handed out so far.
        norms: norm bounds of exact weight, stored weight and change, by the weight's identity (it is kept alive
            here) and the shape of the input.
    """

    cap: int | None
    unit: float
    used: int = 0
    norms: dict[tuple[int, ...], tuple[Constant, tuple[float, float, float]]] = field(default_factory=dict)

    def fresh(self, count: int) -> Tensor:
        """Return `count` new symbol names."""
        self.used += count
        return torch.arange(self.used - count, self.used)

    def limit(self, elements: int) -> int:
        """Return how many symbols a tensor of so many elements may have."""
        return _MEMORY // (16 * elements) if self.cap is None else self.cap

    def evaluation(self, magnitude: Tensor, terms: int) -> Tensor:
        """Bound the networks' rounding error in sums of `terms` terms whose absolute values add up to `magnitude`."""
        return raised(gamma(terms, self.unit) * magnitude, 3)

    def norms_of(self, layer: AffineMap, shape: torch.Size) -> tuple[float, float, float]:
        """Bound the spectral norms of a layer's exact map, stored map and change."""
        key = (id(layer.weight), *shape)
        if key in self.norms:
            return self.norms[key][1]
        exact = stored = layer.norm(layer.weight.exact)
        change = 0.0
        if not layer.weight.same:
            stored, change = layer.norm(layer.weight.stored), layer.norm(layer.change)
        if layer.keep:
            self.norms[key] = (layer.weight, (exact, stored, change))
        return exact, stored, change


def affine(pair: Pair, layer: AffineMap, context: Context) -> Pair:
    """Push a pair through an affine layer: exact but for rounding."""
    rounding, own, other = _rounding(pair, layer, context)
    norms = context.norms_of(layer, pair.value.center.shape)
    return Pair(
        _value_image(pair.value, layer, rounding[0] + own, norms[0]),
        _error_image(pair, layer, rounding[1] + own + other, norms),
        pair.names,
    )


def _value_image(value: Form, layer: AffineMap, noise: Tensor, norm: float) -> Form:
    weight = layer.weight.exact
    center = layer.apply(weight, value.center)
    return Form.tightened(
        center if layer.bias is None else center + layer.bias.exact,
        _on_symbols(layer.apply, weight, value.symbols),
        raised(layer.apply(weight.abs(), value.slack) + noise, layer.terms),
        (norm * value.ball + length(noise)) * _SCALAR,
    )


def _error_image(pair: Pair, layer: AffineMap, noise: Tensor, norms: tuple[float, float, float]) -> Form:
    value, error, weight = pair.value, pair.error, layer.weight.stored
    center = layer.apply(weight, error.center)
    symbols = _on_symbols(layer.apply, weight, error.symbols)
    slack = layer.apply(weight.abs(), error.slack)
    if not layer.weight.same:
        center = center + layer.apply(layer.change, value.center)
        symbols += _on_symbols(layer.apply, layer.change, value.symbols)
        slack = slack + layer.apply(layer.change.abs(), value.slack)
    if layer.bias is not None and not layer.bias.same:
        center = center + (layer.bias.stored - layer.bias.exact)
    ball = (norms[1] * error.ball + norms[2] * value.ball + length(noise)) * _SCALAR
    return Form.tightened(center, symbols, raised(slack + noise, layer.terms + 2), ball)


def _rounding(pair: Pair, layer: AffineMap, context: Context) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
    """Bound what rounding can change: in our own x and d, and in the run of either network."""
    exact, stored = layer.weight.exact.abs(), layer.weight.stored.abs()
    nothing = torch.zeros((), dtype=torch.float64)
    sizes = layer.volume or layer.bias
    bias, stored_bias = (nothing, nothing) if sizes is None else (sizes.exact.abs(), sizes.stored.abs())
    reach, error_reach = pair.value.magnitude(), pair.error.magnitude()
    volume = raised(layer.apply(exact, reach) + bias, layer.terms)
    # stored − exact is itself rounded: relative to the difference where both are given, else to both.
    doubt = exact + stored if layer.uncertain else layer.change.abs()
    error_volume = layer.apply(stored, error_reach)
    if not layer.weight.same:
        error_volume = error_volume + layer.apply(doubt, reach)
    if layer.bias is not None and not layer.bias.same:
        error_volume = error_volume + bias + stored_bias
    factor = gamma(layer.terms + 4)
    noises = raised(factor * volume, 2), raised(factor * raised(error_volume, layer.terms + 3), 2)
    both = raised(layer.apply(stored, reach + error_reach) + stored_bias, layer.terms + 2)
    return noises, context.evaluation(volume, layer.terms + 1), context.evaluation(both, layer.terms + 1)


def _on_symbols(apply: Linear, weight: Tensor, symbols: Tensor) -> Tensor:
    if len(symbols) == 0:
        return apply(weight, symbols.new_zeros(symbols.shape[1:])).unsqueeze(0)[:0]
    flat = apply(weight, symbols.flatten(0, 1))
    return flat.reshape(*symbols.shape[:2], *flat.shape[1:])


def average(pair: Pair, function: Callable[[Tensor], Tensor], terms: int, context: Context) -> Pair:
    """Push a pair through a linear map with coefficients ≥ 0 (mean, sum, average pool) of `terms` terms per output."""
    stretch = nonnegative_norm_bound(function, pair.value.center)

    def push(form: Form, evaluation: Tensor) -> Form:
        mapped = form.map(function, stretch)
        noise = raised(gamma(terms + 1) * raised(function(form.magnitude()), terms), 2) + evaluation
        ball = (mapped.ball + length(noise)) * _SCALAR
        return Form.tightened(mapped.center, mapped.symbols, raised(mapped.slack + noise, terms + 2), ball)

    volume = raised(function(pair.value.magnitude()), terms)
    both = raised(volume + function(pair.error.magnitude()), terms)
    own, other = context.evaluation(volume, terms + 1), context.evaluation(both, terms + 1)
    return Pair(push(pair.value, own), push(pair.error, own + other), pair.names)
