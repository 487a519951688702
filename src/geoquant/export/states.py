"""Is this model quantized by that plan, and are its weights all there is? What exporters ask before they write."""

from __future__ import annotations

from torch import nn

from geoquant.errors import ExportError, PlanError
from geoquant.plan import Plan
from geoquant.quantize import QuantizedState, quantized_state


def state_of(model: nn.Module, plan: Plan) -> QuantizedState:
    """Return codes and scales of `model`.

    Raises:
        PlanError: it is not quantized, was changed since, or was quantized by another plan.
    """
    state = quantized_state(model)
    state.plan.inventory.check_same_layout(plan.inventory)
    if state.plan.names != plan.names:
        raise PlanError("the model was quantized by another plan than this one; export it with its own")
    return state


def refuse_activations(plan: Plan, why: str) -> None:
    """Raise `ExportError`, for the reason `why`, when `plan` quantizes activations."""
    if plan.activations:
        raise ExportError(
            f"the plan quantizes activations ('{plan.activations[0][0]}'), and {why}; use plan.with_activations(None)"
        )
