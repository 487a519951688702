"""How does an error at the input of a map become an error at its output?

An error functional Φ(ε) = Lε + Δ says: if the input is off by at most ε, the computed output is off by at most Lε + Δ,
where L is a Lipschitz constant and Δ the error that the map itself adds. Functionals compose, and add where branches
of a residual net meet.

Where the answer stops: the pair (L, Δ) must not mix its two sources. Either L belongs to the *exact* map and Δ is its
error at the *perturbed* input, or L belongs to the *computed* map and Δ is its error at the *exact* input. A Lipschitz
constant of a composition is at most the product of the constants, seldom equal to it, so the composed Φ is an upper
bound. Source: the stability composition of "Curvature-Guided Bit Allocation", in the form that `docs/sources.md` gives.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass

from geoquant.errors import GeoquantError


@dataclass(frozen=True)
class ErrorFunctional:
    """The affine bound Φ(ε) = lipschitz · ε + local on the output error of a map.

    `outer @ inner` composes (apply `inner` first), `a + b` adds branches that share an input, `2 * a` scales.

    Attributes:
        lipschitz: how much the map can amplify an error, in output units per input unit; at least 0.
        local: the error that the map itself adds, in output units; at least 0.

    Raises:
        GeoquantError: a value is negative or not finite.

    >>> inner, outer = ErrorFunctional(2.0, 0.1), ErrorFunctional(3.0, 0.5)
    >>> outer @ inner
    ErrorFunctional(lipschitz=6.0, local=0.8)
    >>> (outer @ inner)(0.1) == outer(inner(0.1))
    True
    >>> ErrorFunctional.identity() + inner
    ErrorFunctional(lipschitz=3.0, local=0.1)
    """

    lipschitz: float
    local: float

    def __post_init__(self) -> None:
        for name, value in (("lipschitz", self.lipschitz), ("local", self.local)):
            if not (math.isfinite(value) and value >= 0):
                raise GeoquantError(f"an error functional needs a finite {name} of at least 0, got {value}")

    @classmethod
    def identity(cls) -> ErrorFunctional:
        """Return the functional of an exact identity map: Φ(ε) = ε."""
        return cls(1.0, 0.0)

    def __call__(self, error: float) -> float:
        """Bound the output error when the input error is at most `error` (a number of at least 0)."""
        if not error >= 0:
            raise GeoquantError(f"an input error must be at least 0, got {error}")
        return self.lipschitz * error + self.local

    def __matmul__(self, inner: ErrorFunctional) -> ErrorFunctional:
        return ErrorFunctional(self.lipschitz * inner.lipschitz, self.lipschitz * inner.local + self.local)

    def __add__(self, other: ErrorFunctional) -> ErrorFunctional:
        return ErrorFunctional(self.lipschitz + other.lipschitz, self.local + other.local)

    def __rmul__(self, factor: float) -> ErrorFunctional:
        return ErrorFunctional(factor * self.lipschitz, factor * self.local)


def compose(functionals: Iterable[ErrorFunctional]) -> ErrorFunctional:
    """Compose functionals given in the order in which the maps are applied.

    The result is ε∏L_i + Σ_i Δ_i ∏_{j>i} L_j. An empty chain is the identity.

    >>> compose([ErrorFunctional(2.0, 0.5), ErrorFunctional(0.5, 0.25), ErrorFunctional(4.0, 1.0)])
    ErrorFunctional(lipschitz=4.0, local=3.0)
    """
    return functools.reduce(lambda inner, outer: outer @ inner, functionals, ErrorFunctional.identity())


def compose_counting_twice(outer: ErrorFunctional, inner: ErrorFunctional) -> ErrorFunctional:
    """Return Φ_outer∘Φ_inner + L_outer·Φ_inner, which counts the propagated error of `inner` twice.

    This is the composition law as the seeds of this project print it (see docs/sources.md). It is never below the
    sound law and serves for comparison only; nothing in geoquant decides by it.

    >>> inner, outer = ErrorFunctional(1.0, 0.1), ErrorFunctional(3.0, 0.0)
    >>> round((outer @ inner)(0.0), 12), round(compose_counting_twice(outer, inner)(0.0), 12)
    (0.3, 0.6)
    """
    return (outer @ inner) + outer.lipschitz * inner
