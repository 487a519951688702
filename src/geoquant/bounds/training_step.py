"""What can low precision do to one training step, as a composition U ∘ B ∘ F?

The forward pass F moves the point at which the gradient is taken, the backward pass B turns that and its own rounding
into a gradient error, and the update U turns the gradient error and its rounded state into the error of the next state.
F and B are error functionals; an update has several kinds of state (weights, momentum, second moment), so its
functional is a small matrix. ``(adam(…) @ backward @ forward).step()`` is the functional of the whole step.

Where the answer stops: these are bounds of the distance to the exact step, which grow over steps. Whether training goes
*down* is another question, see `descent_condition`. Source: docs/sources.md, "End-to-End QAT via Numerical Geometry";
the seed's single Lipschitz constant of the step is replaced by these matrices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from geoquant.bounds.functional import ErrorFunctional
from geoquant.errors import GeoquantError


@dataclass(frozen=True)
class StepFunctional:
    """Bounds on the state errors after one step: E⁺ ≤ matrix · E + local, each in its own 2-norm.

    Attributes:
        names: the kinds of state, "weights" first.
        matrix: (k, k), at least 0.
        local: (k,), errors that the step itself adds.

    >>> step = StepFunctional(("weights", "momentum"), ((1.0, 0.5), (0.0, 0.9)), (0.1, 0.0))
    >>> step((1.0, 2.0))
    (2.1, 1.8)
    >>> (step @ step)((1.0, 2.0)) == step(step((1.0, 2.0)))
    True
    """

    names: tuple[str, ...]
    matrix: tuple[tuple[float, ...], ...]
    local: tuple[float, ...]

    def __call__(self, errors: tuple[float, ...]) -> tuple[float, ...]:
        """Bound the state errors after the step from those before it."""
        if len(errors) != len(self.names) or any(not error >= 0 for error in errors):
            raise GeoquantError(f"errors of {', '.join(self.names)} are needed, each at least 0; got {errors}")
        after = np.asarray(self.matrix) @ np.asarray(errors) + np.asarray(self.local)
        return tuple(after.tolist())

    def __matmul__(self, earlier: StepFunctional) -> StepFunctional:
        if self.names != earlier.names:
            raise GeoquantError(f"steps of {self.names} and of {earlier.names} do not compose")
        matrix = np.asarray(self.matrix) @ np.asarray(earlier.matrix)
        return StepFunctional(self.names, _rows(matrix), self(earlier.local))


@dataclass(frozen=True)
class UpdateFunctional:
    """What an optimizer makes of errors of its state and of its gradient: E⁺ ≤ state · E + gradient · e + local.

    ``update @ functional`` puts a map in front of the gradient, so that e becomes an error of that map's input.

    Attributes:
        names: the kinds of state, "weights" first.
        state: (k, k).
        gradient: (k,), per unit of gradient error.
        local: (k,), rounding of the stored state.
    """

    names: tuple[str, ...]
    state: tuple[tuple[float, ...], ...]
    gradient: tuple[float, ...]
    local: tuple[float, ...]

    def __matmul__(self, inner: ErrorFunctional) -> UpdateFunctional:
        column = tuple(weight * inner.lipschitz for weight in self.gradient)
        local = tuple(own + weight * inner.local for own, weight in zip(self.local, self.gradient, strict=True))
        return UpdateFunctional(self.names, self.state, column, local)

    def step(self) -> StepFunctional:
        """Close the loop: what remains in front of the gradient reads the weights."""
        matrix = np.asarray(self.state, dtype=float)
        matrix[:, 0] += self.gradient
        return StepFunctional(self.names, _rows(matrix), self.local)


def forward(weight_rounding: float) -> ErrorFunctional:
    """Return Φ_F: the gradient is taken at weights that are off by their error plus ‖δ‖ of forward rounding.

    >>> forward(0.25)(1.0)
    1.25
    """
    return ErrorFunctional(1.0, weight_rounding)


def backward(smoothness: float, gradient_error: float = 0.0) -> ErrorFunctional:
    """Return Φ_B: the gradient is `smoothness`-Lipschitz in the weights and off by `gradient_error` besides.

    Args:
        smoothness: L with ‖∇f(a) − ∇f(b)‖ ≤ L‖a − b‖ where the weights are.
        gradient_error: 2-norm of what activation, gradient and minibatch errors add.

    >>> (backward(10.0, 0.5) @ forward(0.25))(0.0)
    3.0
    """
    return ErrorFunctional(smoothness, gradient_error)


def sgd(rate: float, weight_rounding: float = 0.0) -> UpdateFunctional:
    """Return U for θ ← θ − ηg, with the stored weights off by up to `weight_rounding` (2-norm) after each step.

    >>> (sgd(0.1) @ backward(10.0) @ forward(0.25)).step()((0.0,))
    (0.25,)
    """
    _check_rate(rate)
    return UpdateFunctional(("weights",), ((1.0,),), (rate,), (weight_rounding,))


def nonexpansive_sgd(
    rate: float, smoothness: float, gradient_error: float, weight_rounding: float = 0.0
) -> StepFunctional:
    """Return the step of SGD on a *convex* function: it never expands, L_T = 1, instead of 1 + ηL.

    For convex L-smooth f and η ≤ 2/L the exact step is non-expansive (Hardt, Recht, Singer, arXiv 1509.01240,
    lemma 3.7), so errors add up and are not amplified.

    Args:
        rate: η.
        smoothness: L.
        gradient_error: ‖e‖ of everything between the exact gradient at the current weights and the one used.
        weight_rounding: 2-norm of the rounding of the stored weights.

    Raises:
        GeoquantError: η > 2/L.

    >>> nonexpansive_sgd(0.1, 10.0, 2.5)((1.0,))
    (1.25,)
    """
    _check_rate(rate)
    if rate * smoothness > 2:
        raise GeoquantError(f"a step is non-expansive for rates up to 2/L = {2 / smoothness:g}, got {rate}")
    return StepFunctional(("weights",), ((1.0,),), (rate * gradient_error + weight_rounding,))


def momentum(
    rate: float, decay: float, weight_rounding: float = 0.0, momentum_rounding: float = 0.0
) -> UpdateFunctional:
    """Return U for m ← βm + g, θ ← θ − ηm with the new, rounded m.

    >>> momentum(0.1, 0.9).state
    ((1.0, 0.09000000000000001), (0.0, 0.9))
    """
    _check_rate(rate)
    _check_decay(decay)
    return UpdateFunctional(
        ("weights", "momentum"),
        ((1.0, rate * decay), (0.0, decay)),
        (rate, 1.0),
        (weight_rounding + rate * momentum_rounding, momentum_rounding),
    )


def adam(
    rate: float,
    *,
    gradient_bound: float,
    second_moment_floor: float,
    decays: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    time: int | None = None,
    rounding: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> UpdateFunctional:
    """Return U for Adam (Kingma, Ba, arXiv 1412.6980), Lipschitz on the region that the two bounds describe.

    With a = 1/(√v + ε) and b = G/(2√v(√v + ε)²) at the floor v, the step θ − ηm̂/(√v̂ + ε) moves by at most
    ηa per unit of m̂ and ηb per unit of v̂. Adam has no global constant: b grows without limit as v → 0.

    Args:
        rate: η.
        gradient_bound: G, no coordinate of a gradient or of m̂ exceeds it, in the exact or the rounded run.
        second_moment_floor: v > 0, no coordinate of v̂ lies below it, in either run.
        decays: β₁ and β₂.
        epsilon: ε.
        time: t ≥ 1, for the bias corrections; None for late training, where they are 1.
        rounding: 2-norms of the rounding of the stored weights, first and second moments.

    Raises:
        GeoquantError: a number lies outside its range.

    >>> late = adam(1e-3, gradient_bound=1.0, second_moment_floor=0.25, epsilon=0.0)
    >>> [round(1e3 * entry, 6) for entry in late.state[0]]     # 1, η·β₁/√v and η·β₂·G/(2·v^1.5), in thousandths
    [1000.0, 1.8, 3.996]
    """
    _check_rate(rate)
    for decay in decays:
        _check_decay(decay)
    if not (gradient_bound > 0 and second_moment_floor > 0 and epsilon >= 0):
        raise GeoquantError(
            "Adam needs a gradient bound and a second-moment floor above 0, and an epsilon of at least 0"
        )
    if time is not None and time < 1:
        raise GeoquantError(f"Adam counts its steps from 1, got {time}")
    root = math.sqrt(second_moment_floor)
    corrections = [1.0 if time is None else 1 - decay**time for decay in decays]
    per_first = rate / (root + epsilon) / corrections[0]
    per_second = rate * gradient_bound / (2 * root * (root + epsilon) ** 2) / corrections[1]
    first, second = 1 - decays[0], (1 - decays[1]) * 2 * gradient_bound  # |g² − ĝ²| ≤ 2G|g − ĝ|
    return UpdateFunctional(
        ("weights", "first moment", "second moment"),
        ((1.0, per_first * decays[0], per_second * decays[1]), (0.0, decays[0], 0.0), (0.0, 0.0, decays[1])),
        (per_first * first + per_second * second, first, second),
        (rounding[0] + per_first * rounding[1] + per_second * rounding[2], rounding[1], rounding[2]),
    )


def _rows(matrix: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in matrix.tolist())


def _check_rate(rate: float) -> None:
    if not (math.isfinite(rate) and rate > 0):
        raise GeoquantError(f"a learning rate is a finite number above 0, got {rate}")


def _check_decay(decay: float) -> None:
    if not 0 <= decay < 1:
        raise GeoquantError(f"a decay lies in [0, 1), got {decay}")
