"""How does the gradient turn when the weights move? Products with the loss Hessian and its two parts.

H = G + R: the Gauss-Newton part G = JᵀH_zJ and the remainder R = Σ r_c ∇²z_c, with r the residual of the
loss in the outputs. All three come from double backward; no matrix is ever formed. Products are those of
autograd's derivative: kinks (ReLU, max-pooling) contribute nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from geoquant.errors import DataError
from geoquant.geometry.affine import refuse_hidden
from geoquant.geometry.objective import Objective, Scored
from geoquant.geometry.plain import PlainBatchNorm

Vectors = list[Tensor]
Product = Callable[[Sequence[Tensor]], Vectors]
Part = Literal["hessian", "gauss_newton", "remainder"]

# Forward-equivalents: building the graph is a forward and a backward; one product differentiates both again.
GRAPH_COST = 3.0
PRODUCT_COST = 6.0


def differentiate(outputs: Sequence[Tensor], inputs: Sequence[Tensor], along: Sequence[Tensor] | None) -> Vectors:
    """Return the vector-Jacobian product of `outputs` in `inputs`, zeros where nothing depends, graph kept."""
    pairs = [(y, None if along is None else v) for y, v in _zip(outputs, along) if y.requires_grad]
    if not pairs:
        return [torch.zeros_like(x) for x in inputs]
    weights = None if along is None else [v for _, v in pairs]
    found = torch.autograd.grad([y for y, _ in pairs], inputs, weights, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True)]


def _zip(outputs: Sequence[Tensor], along: Sequence[Tensor] | None) -> Iterator[tuple[Tensor, Any]]:
    yield from zip(outputs, outputs if along is None else along, strict=True)


def _gradient(scalar: Tensor, parameters: Sequence[nn.Parameter], weight: Tensor | None = None) -> Vectors:
    """Differentiate with the graph of the derivative itself."""
    found = torch.autograd.grad(scalar, parameters, weight, create_graph=True, allow_unused=True)
    if any(g is None for g in found):
        refuse_hidden(scalar, parameters)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]


def scalar_product(scalar: Tensor, parameters: Sequence[nn.Parameter]) -> Product:
    """Return v ↦ ∇²(scalar)·v, sharing one forward and backward among all v."""
    gradient = _gradient(scalar, parameters)
    return lambda vectors: differentiate(gradient, parameters, vectors)


def push_forward(objective: Objective, batch: Any) -> tuple[Scored, Callable[[Sequence[Tensor]], Tensor]]:
    """Return the outputs of `batch` and v ↦ Jv, their displacement when the parameters move by v.

    Jᵀu is linear in u, so its derivative along v in the parameters' place is Jv: two reverse passes, no forward
    mode, which fused kernels do not have.
    """
    scored = objective.scored(batch)
    dummy = torch.zeros_like(scored.outputs, requires_grad=True)
    pulled = _gradient(scored.outputs, objective.unique, dummy)
    return scored, lambda vectors: differentiate(pulled, [dummy], vectors)[0]


def _gauss_newton_product(objective: Objective, batch: Any) -> tuple[Product, float]:
    scored, push = push_forward(objective, batch)

    def product(vectors: Sequence[Tensor]) -> Vectors:
        pushed = push(vectors).flatten(0, 1)
        weighted = scored.masked_hessian(scored.rows.detach(), pushed).view_as(scored.outputs)
        return differentiate([scored.outputs], objective.unique, [weighted])

    return product, scored.count


def batch_product(objective: Objective, batch: Any, part: Part = "hessian") -> tuple[Product, float]:
    """Return the product of one batch's summed loss, and its number of predictions.

    Call inside ``objective.studied()``. Memory is that of a backward with its own graph, kept until the
    product is dropped.
    """
    with PlainBatchNorm():
        return _batch_product(objective, batch, part)


def _batch_product(objective: Objective, batch: Any, part: Part) -> tuple[Product, float]:
    if part == "gauss_newton":
        return _gauss_newton_product(objective, batch)
    if part == "remainder":
        scored = objective.scored(batch)
        # With the residual held fixed, Σ r·z has exactly R for a Hessian.
        return scalar_product((scored.outputs * scored.residual()).sum(), objective.unique), scored.count
    total, count = objective.total(batch)
    return scalar_product(total, objective.unique), count


def products(objective: Objective, vectors: Sequence[Sequence[Tensor]], part: Part = "hessian") -> list[Vectors]:
    """Multiply each of `vectors` (aligned with ``objective.unique``) by the mean loss's matrix.

    Args:
        objective: what is differentiated.
        vectors: one or more lists of tensors, each tensor of its parameter's shape.
        part: ``"hessian"``, ``"gauss_newton"`` or ``"remainder"``.

    Raises:
        DataError: no prediction counts.
    """
    sums = [[torch.zeros_like(v) for v in vector] for vector in vectors]
    count = 0.0
    with objective.studied():
        for batch in objective.batches:
            product, size = batch_product(objective, batch, part)
            count += size
            for total, vector in zip(sums, vectors, strict=True):
                torch._foreach_add_(total, product(vector))
    if count == 0:
        raise DataError("no prediction to average over: every position is masked")
    for total in sums:
        torch._foreach_div_(total, count)
    return sums


def hessian_vector_product(
    objective: Objective, vector: Sequence[Tensor], part: Part = "hessian"
) -> tuple[Tensor, ...]:
    """Return the mean loss's Hessian (or a part of it) times one vector.

    Args:
        objective: what is differentiated.
        vector: one tensor for each of ``objective.unique``.
        part: ``"hessian"``, ``"gauss_newton"`` or ``"remainder"``.

    Source: Pearlmutter 1994, "Fast exact multiplication by the Hessian"; here by double backward.

    >>> from geoquant.geometry.objective import make_objective
    >>> model = nn.Linear(1, 1, bias=False).double()
    >>> data = [(torch.tensor([[3.0]]).double(), torch.tensor([[0.0]]).double())]
    >>> objective = make_objective(model, data)  # ½(3w)², whose second derivative is 9
    >>> hessian_vector_product(objective, [torch.ones(1, 1).double()])[0].item()
    9.0
    """
    return tuple(products(objective, [vector], part)[0])
