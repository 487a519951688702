"""Do what the plan says: put every weight on its grid.

All codes are computed before the first weight changes, so an error leaves the model as it was. The model
keeps float parameters (now exactly on their grids) and remembers codes and scales, which saving and
exporting read; nothing else about it changes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from geoquant.errors import PlanError
from geoquant.grids import QuantizedMatrix
from geoquant.models import Site, check_finite, get_weight, set_weight_, take_inventory
from geoquant.plan import Plan
from geoquant.progress import task
from geoquant.rounding import ROUNDINGS, RoundingContext

_STATE = "_geoquant_state"

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class QuantizedState:
    """What a quantized model remembers: its plan, and codes and scales of every site by parameter name."""

    plan: Plan
    matrices: dict[str, QuantizedMatrix]


def quantize_(
    model: Model, plan: Plan, calibration: Iterable[Any] | None = None, *, rounding: str = "nearest", seed: int = 0
) -> Model:
    """Round every weight of `model` to the grid that `plan` gives it, in place; return the model.

    Args:
        model: the float model that the plan was made for.
        plan: a grid per site.
        calibration: batches, for roundings that look at data; "nearest" and "stochastic" do not.
        rounding: a registered rounding.
        seed: for roundings that draw.

    Raises:
        PlanError: the plan belongs to another model, or the model is quantized already.
        ModelError: a weight is NaN or Inf.
        GridError: a grid cannot hold the weights.
    """
    if getattr(model, _STATE, None) is not None:
        raise PlanError("this model is quantized already; quantize the float model again")
    inventory = take_inventory(model)
    plan.inventory.check_same_layout(inventory)
    check_finite(model)
    method = ROUNDINGS[rounding]
    matrices = {}
    with task("quantizing", len(inventory.sites)) as advance:
        for index, (site, grid) in enumerate(zip(inventory.sites, plan.grids, strict=True)):
            matrix = site.matrix(get_weight(model, site)).float()
            matrices[site.parameter] = method(matrix, grid, RoundingContext(seed=seed + index))
            advance()
    attach_(model, QuantizedState(plan, matrices), inventory.sites)
    return model


def quantize(
    model: Model, plan: Plan, calibration: Iterable[Any] | None = None, *, rounding: str = "nearest", seed: int = 0
) -> Model:
    """Return a quantized copy of `model` (see `quantize_`)."""
    return quantize_(copy.deepcopy(model), plan, calibration, rounding=rounding, seed=seed)


def attach_(model: nn.Module, state: QuantizedState, sites: tuple[Site, ...]) -> None:
    """Write the dequantized weights into `model` and let it remember their codes."""
    for site in sites:
        set_weight_(model, site, site.restore(state.matrices[site.parameter].dequantize()))
    object.__setattr__(model, _STATE, state)


def quantized_state(model: nn.Module) -> QuantizedState:
    """Return what `quantize_` or `load` left on the model, after checking that the weights still match.

    Raises:
        PlanError: the model is not quantized, or a weight was changed since.
    """
    state: QuantizedState | None = getattr(model, _STATE, None)
    if state is None:
        raise PlanError("this model is not quantized; call geoquant.quantize_(model, plan) first")
    for site in state.plan.inventory.sites:
        weight = get_weight(model, site)
        stored = site.restore(state.matrices[site.parameter].dequantize()).to(weight)
        if not torch.equal(weight, stored):
            raise PlanError(f"the weight of '{site.name}' was changed after it was quantized; quantize the model again")
    return state
