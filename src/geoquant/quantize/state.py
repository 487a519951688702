"""What does a quantized model remember, and is it still true?

The model keeps float parameters, exactly on their grids, and remembers codes and scales, which saving and
exporting read.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from geoquant.errors import PlanError
from geoquant.grids import ActivationScale, QuantizedMatrix
from geoquant.models import Site, get_weight, set_weight_
from geoquant.plan import Plan
from geoquant.quantize.activations import install_, quantizers_of
from geoquant.transforms import TransformReport

_STATE = "_geoquant_state"


@dataclass(frozen=True, eq=False)
class QuantizedState:
    """What a quantized model remembers.

    Attributes:
        plan: a grid for every site.
        matrices: codes and scales of every site, by parameter name.
        unseen: sites that were rounded without their inputs although the rounding asked for them: embeddings, which
            multiply nothing, and weights that no calibration batch reached or that are read from outside their layer.
        scales: static scales by activation site.
        in_float: activations that stay in float although one may expect otherwise, each with its reason.
        latents: the float weights that the codes stand for, by parameter name, where `quantize_` has just rounded
            them; they are not saved. Training goes on from them (`geoquant.recovery`).
        transforms: what was rewritten before rounding; not saved either, as the weights are.
    """

    plan: Plan
    matrices: dict[str, QuantizedMatrix]
    unseen: tuple[str, ...] = ()
    scales: dict[str, ActivationScale] = field(default_factory=dict)
    in_float: tuple[str, ...] = ()
    latents: dict[str, Tensor] = field(default_factory=dict)
    transforms: tuple[TransformReport, ...] = ()


def attach_(model: nn.Module, state: QuantizedState, sites: tuple[Site, ...]) -> None:
    """Write the dequantized weights into `model`, let it round its activations, and remember their codes and scales."""
    install_(model, state.plan, state.scales)
    remember_(model, state, sites)


def remember_(model: nn.Module, state: QuantizedState, sites: tuple[Site, ...] | None = None) -> None:
    """Write other codes and scales into a model that rounds its activations already.

    Args:
        model: with the quantizers of `state.plan` installed.
        state: what it is to remember from now on.
        sites: those of the model; the plan's when None.
    """
    for each in quantizers_of(model):
        each.scale = state.scales.get(each.name, each.scale)
    for site in state.plan.inventory.sites if sites is None else sites:
        set_weight_(model, site, site.restore(state.matrices[site.parameter].dequantize()))
    object.__setattr__(model, _STATE, state)


def forget_(model: nn.Module) -> None:
    """Let go of codes and scales; the weights stay where they are."""
    object.__delattr__(model, _STATE)


def is_quantized(model: nn.Module) -> bool:
    """Whether `quantize_` or `load` has left codes on the model.

    >>> is_quantized(nn.Linear(1, 1))
    False
    """
    return getattr(model, _STATE, None) is not None


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
