"""What are the error functionals of products of activations: attention, gating, normalisation?

None of them is Lipschitz in a useful global sense (attention in none: Kim, Papamakarios, Mnih, arXiv 2006.04710), so
these rules use how large the activations are over the stated ball, and hold there only.

Where the answer stops: norms of whole tensors; a long sequence pays the square root of its length several times.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from geoquant.bounds.flow import Flow, product
from geoquant.bounds.flow_table import affine, as_constant, constant_of, flow_of, rule, scaled
from geoquant.bounds.graph import Constant, NotCovered
from geoquant.bounds.operator_norms import matrix_norm_bound


@rule("mul")
def _mul(label: str, left: Any, right: Any) -> Flow:
    if isinstance(left, Flow) and isinstance(right, Flow):
        if left.center.shape != right.center.shape:
            raise NotCovered("a product of activations that broadcasts")
        sizes = float(left.center.abs().max()), float(right.center.abs().max())
        return product(left.center * right.center, left, right, sizes)
    flow, factor = (left, right) if isinstance(left, Flow) else (right, left)
    return scaled(flow, as_constant(factor), None, label)


@rule("matmul", "bmm", "mm")
def _matmul(label: str, left: Any, right: Any) -> Flow:
    if isinstance(left, Flow) and isinstance(right, Flow):
        return _activations_product(left, right)
    if isinstance(left, Flow):
        return affine(left, lambda w, v: v @ w, constant_of(right), None, label, matrix_norm_bound)
    return affine(flow_of(right), lambda w, v: w @ v, constant_of(left), None, label, matrix_norm_bound)


def _activations_product(left: Flow, right: Flow) -> Flow:
    if left.center.dim() < 2 or left.center.shape[:-2] != right.center.shape[:-2]:
        raise NotCovered("a matrix product that broadcasts")
    return product(
        left.center @ right.center, left, right, (matrix_norm_bound(left.center), matrix_norm_bound(right.center))
    )


@rule("softmax", "_softmax")
def _softmax(label: str, x: Any, dim: int, *rest: Any) -> Flow:
    # The Jacobian diag(p) − ppᵀ has norm at most ½ (p = (½, ½, 0, …) attains it).
    return flow_of(x).through(torch.softmax(x.center, dim), 0.5, 0.5)


@rule("log_softmax", "_log_softmax")
def _log_softmax(label: str, x: Any, dim: int, *rest: Any) -> Flow:
    # ‖I − 1pᵀ‖ is convex in p, so largest at a corner of the simplex, where it is √n.
    flow = flow_of(x)
    constant = math.sqrt(flow.center.shape[dim])
    return flow.through(torch.log_softmax(flow.center, dim), constant, constant)


@rule("layer_norm")
def _layer_norm(
    label: str,
    x: Any,
    shape: list[int],
    weight: Constant | None = None,
    bias: Constant | None = None,
    eps: float = 1e-5,
    *rest: Any,
) -> Flow:
    return _normalised(flow_of(x), shape, weight, bias, eps, label, centered=True)


@rule("rms_norm")
def _rms_norm(label: str, x: Any, shape: list[int], weight: Constant | None = None, eps: float | None = None) -> Flow:
    # torch's default is the epsilon of the run's dtype; the smaller one (float64) gives the larger constant.
    return _normalised(flow_of(x), shape, weight, None, 2.0**-52 if eps is None else eps, label, centered=False)


def _normalised(
    flow: Flow, shape: list[int], weight: Constant | None, bias: Constant | None, eps: float, label: str, centered: bool
) -> Flow:
    """Normalise each token: z ↦ z/√(‖z‖²/n + ε) has a Jacobian of norm 1/√(‖z‖²/n + ε); ‖z‖ over the ball is known."""
    dims = tuple(range(-len(shape), 0))
    token = flow.center - flow.center.mean(dims, keepdim=True) if centered else flow.center
    size, count = torch.linalg.vector_norm(token, dim=dims, keepdim=True), math.prod(shape)

    def steepest(distance: float) -> float:
        closest = (size - distance).clamp_min(0).min()
        return float(1 / (closest**2 / count + eps).sqrt())

    unit = token / (size**2 / count + eps).sqrt()
    result = flow.through(unit, steepest(flow.spread), steepest(flow.spread + flow.error))
    one = torch.ones(shape, dtype=torch.float64)
    factor = weight or Constant(one, one)
    return scaled(result, factor, bias, label) if weight or bias else result


@rule("scaled_dot_product_attention")
def _attention(
    label: str,
    query: Any,
    key: Any,
    value: Any,
    mask: Any = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Flow:
    """Compose scores QKᵀ, softmax and the average over V; a mask only removes entries from the softmax."""
    if dropout or enable_gqa or isinstance(mask, Flow):
        raise NotCovered("attention with dropout, grouped queries or a computed mask")
    transposed = flow_of(key).through(key.center.mT, 1.0, 1.0)
    scores = _activations_product(flow_of(query), transposed)
    factor = 1 / math.sqrt(query.center.shape[-1]) if scale is None else scale
    scores = scores.through(_masked(scores.center * factor, mask, is_causal), abs(factor), abs(factor))
    weights = scores.through(torch.softmax(scores.center, -1), 0.5, 0.5)
    return _activations_product(weights, flow_of(value))


def _masked(scores: Tensor, mask: Any, is_causal: bool) -> Tensor:
    if is_causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        scores = scores.masked_fill(~allowed, -math.inf)
    if mask is None:
        return scores
    if not mask.same:
        raise NotCovered("attention with masks that differ")
    return scores.masked_fill(~mask.exact, -math.inf) if mask.exact.dtype == torch.bool else scores + mask.exact
