"""In how few bits does a training step still go down?

For L-smooth f and η ≤ 1/L, the step θ⁺ = θ − η(∇f(θ) + e) has f(θ⁺) ≤ f(θ) − (η/2)(‖∇f(θ)‖² − ‖e‖²): descent is
guaranteed while the gradient is longer than its error. For the weights' forward rounding δ alone, ‖e‖ ≤ L‖δ‖. A
schedule built on it has a proven descent condition, and no more: low precision early and high late is to be measured.

Where the answer stops: one step, in exact arithmetic but for e. Weights *stored* on the grid add the dead zone. The
condition is sufficient, and tight: ½λx² stalls at x just under half a step, where ‖∇f‖ = L‖δ‖. Source:
docs/sources.md, "End-to-End QAT via Numerical Geometry"; the sound form is derived there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from geoquant.arrays import Floats
from geoquant.errors import GeoquantError


@dataclass(frozen=True)
class Descent:
    """What is guaranteed of one step.

    Attributes:
        guaranteed: whether f must go down.
        decrease: f goes down by at least this much (up by at most its negative).
    """

    guaranteed: bool
    decrease: float


def descent(gradient_norm: float, error_norm: float, rate: float, smoothness: float) -> Descent:
    """Apply the descent lemma to a step with a wrong gradient.

    Args:
        gradient_norm: ‖∇f(θ)‖ of the exact gradient.
        error_norm: ‖e‖: weight, activation, gradient and minibatch errors together; L‖δ‖ for forward weight rounding.
        rate: η.
        smoothness: L.

    Raises:
        GeoquantError: η > 1/L, where the statement does not hold, or a negative number.

    >>> descent(2.0, 1.0, 0.1, 10.0)
    Descent(guaranteed=True, decrease=0.15000000000000002)
    >>> descent(1.0, 1.0, 0.1, 10.0).guaranteed
    False
    """
    _check(gradient_norm=gradient_norm, error_norm=error_norm, rate=rate, smoothness=smoothness)
    if rate * smoothness > 1 + 1e-12:
        raise GeoquantError(
            f"the guarantee holds for rates up to 1/L = {1 / smoothness:g}, got {rate:g}; lower the rate"
        )
    return Descent(gradient_norm > error_norm, rate / 2 * (gradient_norm**2 - error_norm**2))


def sufficient_forward_bits(gradient_norm: float, smoothness: float, weights: int, span: float) -> float:
    """Return log₂(L√d·R/(2‖∇f‖)): with more forward weight bits than that, descent is guaranteed.

    Nearest rounding on a b-bit grid over a range R moves d weights by at most ‖δ‖ ≤ √d·R/2^{b+1}.

    Args:
        gradient_norm: ‖∇f(θ)‖ > 0.
        smoothness: L.
        weights: d.
        span: R, in weight units.

    >>> sufficient_forward_bits(1.0, 4.0, 4, 1.0)
    2.0
    """
    _check(gradient_norm=gradient_norm, smoothness=smoothness, span=span)
    if gradient_norm == 0:
        return math.inf
    ratio = smoothness * math.sqrt(weights) * span / (2 * gradient_norm)
    return max(math.log2(ratio), 0.0) if ratio > 0 else 0.0


def dead_zone(gradient: Tensor, rate: float, step: float) -> Tensor:
    """Return which weights cannot move: stored on a grid with nearest rounding, they need η|g| > Δ/2.

    Args:
        gradient: any shape.
        rate: η.
        step: Δ, in weight units.

    >>> import torch
    >>> dead_zone(torch.tensor([0.4, -0.6]), 0.1, 0.1).tolist()
    [True, False]
    """
    return rate * gradient.abs() <= step / 2


def stochastic_rounding_variance(step: float) -> float:
    """Return Δ²/4, the largest variance that stochastic rounding adds per weight; it leaves no dead zone.

    A weight at fraction p of a step goes up with probability p: variance p(1 − p)Δ².

    >>> stochastic_rounding_variance(0.5)
    0.0625
    """
    return step**2 / 4


def own_layer_rule(
    smoothness: Sequence[float], gradient_norms: Sequence[float], errors: Sequence[float]
) -> tuple[bool, ...]:
    """Say for each layer whether L_i‖δ_i‖ < ‖∇_i f‖, *as if all other layers were exact*.

    This is the seed's layer-wise rule (docs/sources.md, "End-to-End QAT via Numerical Geometry"). It guarantees nothing
    when layers are rounded together and coupled; `coupled_rule` does.

    >>> own_layer_rule([1.0, 1.0], [0.1, 0.1], [0.09, 0.2])
    (True, False)
    """
    return coupled_rule(np.diag(np.asarray(smoothness, dtype=float)), gradient_norms, errors)


def coupled_rule(
    coupling: Floats | Sequence[Sequence[float]], gradient_norms: Sequence[float], errors: Sequence[float]
) -> tuple[bool, ...]:
    """Say for each layer whether Σ_j‖H_ij‖‖δ_j‖ < ‖∇_i f‖. If it holds for all layers, so does the descent condition.

    Args:
        coupling: (k, k) bounds of the norms of the Hessian's blocks between the weights and their rounded values.
        gradient_norms: (k,) ‖∇_i f(θ)‖.
        errors: (k,) ‖δ_j‖.

    Raises:
        GeoquantError: shapes that do not fit, or a negative number.

    >>> coupled_rule([[1.0, 0.9], [0.9, 1.0]], [0.1, 0.1], [0.09, 0.09])
    (False, False)
    """
    blocks, gradients, moves = _blocks(coupling, gradient_norms, errors)
    return tuple(bool(held) for held in blocks @ moves < gradients)


def sufficient_layer_bits(
    coupling: Floats | Sequence[Sequence[float]],
    gradient_norms: Sequence[float],
    weights: Sequence[int],
    spans: Sequence[float],
) -> tuple[float, ...]:
    """Return forward bits per layer above which the coupled rule, and with it descent, holds.

    Every layer i shares its gradient evenly among the layers that couple to it, so layer j may move by
    min_i ‖∇_i f‖/(n_i‖H_ij‖), n_i the number of nonzero blocks in row i. Sufficient, not least.

    Args:
        coupling: as in `coupled_rule`.
        gradient_norms: (k,) ‖∇_i f(θ)‖.
        weights: (k,) d_j.
        spans: (k,) R_j, in weight units.

    >>> sufficient_layer_bits([[1.0, 0.0], [0.0, 1.0]], [0.5, 0.5], [1, 4], [1.0, 1.0])
    (0.0, 1.0)
    """
    blocks, gradients, reach = _blocks(coupling, gradient_norms, np.sqrt(weights) * np.asarray(spans, dtype=float) / 2)
    shares = np.maximum((blocks > 0).sum(1), 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        allowed = np.where(blocks > 0, (gradients / shares)[:, None] / blocks, np.inf).min(0)
        bits = np.log2(reach / allowed)
    return tuple(np.maximum(bits, 0.0).tolist())


def seed18_layer_bits(curvature: float, scale: float, gradient_norm: float, margin: float = 4.0) -> float:
    """Return log₂(κ‖θ‖/‖g‖) + c, the seed's per-layer bits (docs/sources.md, "End-to-End QAT via Numerical Geometry").

    `own_layer_rule` with a relative rounding error of 2^{−p} and a margin of c bits; blind to coupling.

    >>> seed18_layer_bits(4.0, 8.0, 2.0, margin=3.0)
    7.0
    """
    _check(curvature=curvature, scale=scale, gradient_norm=gradient_norm)
    return math.log2(curvature * scale / gradient_norm) + margin


def noise_mark(gradient_norm: float, noise_norm: float) -> float:
    """Return ‖g‖/(√3·‖noise‖); below 1, training was seen to stop helping (arXiv 2505.19115).

    An empirical mark from that paper's abstract, not a theorem: `descent` is the theorem.

    >>> round(noise_mark(3.0, 1.0), 6)
    1.732051
    """
    _check(gradient_norm=gradient_norm, noise_norm=noise_norm)
    return math.inf if noise_norm == 0 else gradient_norm / (math.sqrt(3) * noise_norm)


def _blocks(
    coupling: Floats | Sequence[Sequence[float]], gradients: Sequence[float], moves: Sequence[float]
) -> tuple[Floats, Floats, Floats]:
    blocks, norms, sizes = (np.asarray(one, dtype=float) for one in (coupling, gradients, moves))
    if blocks.shape != (len(norms), len(norms)) or sizes.shape != norms.shape:
        raise GeoquantError(f"{len(norms)} layers need a {len(norms)}×{len(norms)} coupling, got {blocks.shape}")
    if not (np.isfinite(blocks).all() and (blocks >= 0).all() and (norms >= 0).all() and (sizes >= 0).all()):
        raise GeoquantError("norms of Hessian blocks, gradients and errors are finite and at least 0")
    return blocks, norms, sizes


def _check(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise GeoquantError(f"{name} must be finite and at least 0, got {value}")
