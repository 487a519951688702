"""How do activations get onto their grids while the model runs?

Forward pre-hooks on the planned layers round their inputs; the operands of additions, softmaxes and products, which no
module owns, are caught where the forward calls them (`geoquant.models.intercept`). The rounding is simulated in
float, with a straight-through gradient, so training and inference mode both work. Hooks belong to the model: they
follow it through `copy.deepcopy`, keep out of its state dict, and are not touched by `load_state_dict`. Not covered,
and named in `QuantizedState.in_float`: what torch computes inside one operation.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from geoquant.grids import ActivationScale
from geoquant.grids.activation_quantizer import NOT_SEEN, ActivationQuantizer
from geoquant.models import is_traceable
from geoquant.models.entering import refusal, round_entering_, rounders_in
from geoquant.plan import Plan


def install_(
    model: nn.Module, plan: Plan, scales: Mapping[str, ActivationScale] | None = None
) -> dict[str, ActivationQuantizer]:
    """Let `model` round its activations as `plan` says; return the quantizers by activation site.

    Args:
        model: of the plan's layout.
        plan: names the grids.
        scales: static scales by activation site.

    Raises:
        ModelError: the plan names an operation that the model does not have.
    """
    scales = scales or {}
    sites = {site.name: site for site in plan.inventory.sites}
    found = {}
    for name, grid in plan.activation_grids.items():
        by_sample = name in sites and sites[name].kind.startswith("conv")
        found[name] = ActivationQuantizer(grid, scales.get(name, NOT_SEEN), by_sample, name)
    round_entering_(model, plan.inventory.sites, found)
    return found


def quantizers_of(model: nn.Module) -> list[ActivationQuantizer]:
    """Return the quantizers in the hooks of `model`, each once."""
    return [each for each in rounders_in(model) if isinstance(each, ActivationQuantizer)]


def left_in_float(model: nn.Module, plan: Plan, scales: Mapping[str, ActivationScale]) -> tuple[str, ...]:
    """Say which activations stay in float against what one may expect, each with its reason.

    Follows from the model's structure, the plan and the static scales, so that nothing of it needs to be stored.
    """
    if not plan.activations:
        return ()
    said = [
        f"{site.name}: {why}"
        for site in plan.inventory.sites
        if site.kind != "embedding" and (why := refusal(site, plan.inventory))
    ]
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            said.append(f"{name}: its products and its softmax are computed inside one operation")
    if not is_traceable(model):
        said.append("additions, softmaxes and products outside of layers: the model's forward cannot be traced")
    for name, scale in scales.items():
        if scale == NOT_SEEN:
            said.append(f"{name}: no calibration batch brought it anything but zeros")
    return tuple(said)
