"""What does this very displacement of the weights cost to second order?

½δᵀHδ is the second-order damage of moving the weights by δ (the first-order term is the gradient's). One
Hessian-vector product gives it for all layers moving together, and how it splits among them. The Gram
matrix of logit displacements u_l = J_l δ_l keeps every pair: Σ_lm u_lᵀH_z u_m is δᵀGδ. All at the present
weights: silent about walls outside the Taylor radius, and about displacements that do not add in logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from geoquant.errors import DataError, ModelError
from geoquant.geometry.evidence import Estimate
from geoquant.geometry.hutchinson import dots
from geoquant.geometry.hvp import GRAPH_COST, PRODUCT_COST, Part, products, push_forward
from geoquant.geometry.objective import Chosen, Loss, Objective, make_objective
from geoquant.geometry.plain import PlainBatchNorm
from geoquant.models import Forward
from geoquant.progress import task


@dataclass(frozen=True)
class QuadraticForm:
    """δᵀMδ of the mean loss, per prediction, without the factor ½.

    Attributes:
        joint: all layers moving together.
        shares: name → δ_l·(Mδ)_l; they add up to `joint`, and may be negative.
        alone: name → δ_lᵀM_llδ_l, each layer moving alone; empty unless asked for.
    """

    joint: Estimate
    shares: dict[str, float]
    alone: dict[str, Estimate]


def quadratic_form(
    model: nn.Module,
    batches: Sequence[Any],
    displacement: Mapping[str, Tensor],
    sites: Chosen = None,
    *,
    part: Part = "hessian",
    alone: bool = False,
    forward: Forward | None = None,
    loss: str | Loss = "auto",
) -> QuadraticForm:
    """Return δᵀHδ for given displacements, exactly (one Hessian-vector product; one more per layer if `alone`).

    Args:
        model: any module; studied in eval mode, left as it was.
        batches: see `hessian_traces`.
        displacement: name → tensor of the weight's shape.
        sites: what the names mean, when they are not names of layers or parameters.
        part: ``"hessian"``, ``"gauss_newton"`` or ``"remainder"``.
        alone: also move each layer alone.
        forward: how to call the model.
        loss: see `hessian_traces`.

    >>> layer = nn.Linear(2, 1, bias=False).double()
    >>> data = [(torch.tensor([[3.0, 4.0]]).double(), torch.zeros(1, 1).double())]
    >>> quadratic_form(layer, data, {"weight": torch.tensor([[1.0, 1.0]])}).joint.value
    49.0
    """
    objective = make_objective(model, batches, _chosen(displacement, sites), loss=loss, forward=forward)
    delta = _aligned(objective, displacement)
    vectors = [delta, *(_only(delta, place) for place in range(len(delta)) if alone)]
    images = products(objective, vectors, part)
    parts = dots(delta, images[0])
    cost = GRAPH_COST + PRODUCT_COST
    places = dict(zip(objective.names, objective.position, strict=True))
    shares = {name: float(parts[place]) for name, place in places.items()}
    single = {
        name: Estimate.known(float(dots(delta, images[1 + place])[place]), f"{part} form", cost=cost)
        for name, place in places.items()
        if alone
    }
    return QuadraticForm(Estimate.known(float(parts.sum()), f"{part} form", cost=cost), shares, single)


def displacement_gram(
    model: nn.Module,
    batches: Sequence[Any],
    displacement: Mapping[str, Tensor],
    sites: Chosen = None,
    *,
    forward: Forward | None = None,
    loss: str = "auto",
) -> Tensor:
    """Return the Gram matrix u_lᵀH_z u_m of the layers' first-order output displacements, per prediction.

    Its diagonal is δ_lᵀG_llδ_l, which is δ_lᵀH_llδ_l where the net is piecewise affine in the layer; its sum is
    δᵀGδ. Costs two backward passes per layer.

    Returns:
        (layers, layers), float64, in the order of `displacement`.

    >>> layer = nn.Linear(2, 1, bias=False).double()
    >>> data = [(torch.tensor([[3.0, 4.0]]).double(), torch.zeros(1, 1).double())]
    >>> displacement_gram(layer, data, {"weight": torch.tensor([[1.0, 1.0]])})
    tensor([[49.]], dtype=torch.float64)
    """
    objective = make_objective(model, batches, _chosen(displacement, sites), loss=loss, forward=forward)
    delta = _aligned(objective, displacement)
    total = torch.zeros(len(delta), len(delta), dtype=torch.float64)
    count = 0.0
    with objective.studied(), task("displacement Gram", len(objective.batches)) as advance:
        for batch in objective.batches:
            with PlainBatchNorm():
                scored, push = push_forward(objective, batch)
            moved = torch.stack([push(_only(delta, place)).flatten(0, 1) for place in range(len(delta))])
            rows = scored.rows.detach()
            weighted = torch.stack([scored.masked_hessian(rows, row) for row in moved])
            total += (weighted.double().flatten(1) @ moved.double().flatten(1).T).cpu()
            count += scored.count
            advance()
    if count == 0:
        raise DataError("no prediction to average over: every position is masked")
    return total / count


def _chosen(displacement: Mapping[str, Tensor], sites: Chosen) -> Chosen:
    """Keep of `sites` what is displaced, in the order of the displacement."""
    if not displacement:
        raise DataError("there is no displacement; expected at least one name with a tensor")
    if sites is None:
        return list(displacement)
    if isinstance(sites, Mapping):
        return {name: sites[name] for name in displacement}
    by_name = {site if isinstance(site, str) else site.name: site for site in sites}
    return [by_name.get(name, name) for name in displacement]


def _aligned(objective: Objective, displacement: Mapping[str, Tensor]) -> list[Tensor]:
    if len(objective.unique) != len(objective.names):
        raise ModelError("two names of the displacement are one tied weight; name it once")
    found: list[Tensor] = []
    for name, parameter in objective.parameters.items():
        delta = displacement[name]
        if delta.shape != parameter.shape:
            raise ModelError(
                f"the displacement of '{name}' has shape {tuple(delta.shape)}; its weight has {tuple(parameter.shape)}"
            )
        found.append(delta.detach().to(parameter))
    return found


def _only(delta: Sequence[Tensor], place: int) -> list[Tensor]:
    return [part if index == place else torch.zeros_like(part) for index, part in enumerate(delta)]
