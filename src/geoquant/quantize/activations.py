"""How do activations get onto their grids while the model runs?

Forward pre-hooks on the planned layers round their inputs; the operands of additions, softmaxes and products, which no
module owns, are caught where the forward calls them (`geoquant.models.intercept`). The rounding is simulated in
float, with a straight-through gradient, so training and inference mode both work. Hooks belong to the model: they
follow it through `copy.deepcopy`, keep out of its state dict, and are not touched by `load_state_dict`. Not covered,
and named in `QuantizedState.in_float`: what torch computes inside one operation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from geoquant.geometry import ActivationRange
from geoquant.geometry.clipping import fit_scale
from geoquant.grids import ActivationGrid, ActivationScale
from geoquant.models import is_traceable
from geoquant.models.entering import refusal, round_entering_, rounders_in
from geoquant.plan import Plan

NOT_SEEN = ActivationScale(0.0)


class ActivationQuantizer(nn.Module):
    """Rounds tensors to an activation grid; passes them on while a static scale is not known.

    Attributes:
        grid: where to.
        scale: static scale; `NOT_SEEN` before calibration, where nothing arrived, or nothing but zeros.
        by_sample: whether a token is a whole sample, as for convolutions.
        stretch: while the scale is being learned, what it moves by: scale · (1 + stretch). None otherwise.

    >>> quantizer = ActivationQuantizer(ActivationGrid.parse("int2:affine:dynamic"))
    >>> import torch
    >>> quantizer(torch.tensor([0.0, 0.8, 3.0])).tolist()
    [0.0, 1.0, 3.0]
    """

    def __init__(
        self, grid: ActivationGrid, scale: ActivationScale = NOT_SEEN, by_sample: bool = False, name: str = ""
    ) -> None:
        super().__init__()
        self.grid, self.scale, self.by_sample, self.name = grid, scale, by_sample, name
        self.stretch: nn.Parameter | None = None

    def forward(self, *values: Tensor) -> Any:
        """Return the rounded tensor, or a tuple of them; tensors of integers are returned as they came."""
        rounded = tuple(self._round(each) for each in values)
        return rounded[0] if len(rounded) == 1 else rounded

    def _round(self, values: Tensor) -> Tensor:
        if not values.is_floating_point() or values.numel() == 0:
            return values
        if self.grid.dynamic:
            return self.grid.quantize_dynamically(values, self.by_sample)
        if self.scale.scale == 0:
            return values
        if self.stretch is not None:
            return self.grid.quantize_learnably(values, self.scale.scale * (1 + self.stretch), self.scale.zero)
        return self.grid.quantize(values, self.scale)

    def start_learning_(self, device: torch.device) -> nn.Parameter | None:
        """Make the scale learnable from now on; None where there is no static scale."""
        if not self.grid.dynamic and self.scale.scale != 0:
            self.stretch = nn.Parameter(torch.zeros((), device=device))
        return self.stretch

    def stop_learning_(self) -> None:
        """Hold the scale where it is now, as a float32."""
        if self.stretch is not None:
            moved = self.scale.scale * (1 + self.stretch.detach().clamp(min=-0.9))
            self.scale, self.stretch = replace(self.scale, scale=float(moved)), None

    def fit_(self, seen: ActivationRange) -> None:
        """Take the static scale that the grid's range method finds for the values `seen`."""
        self.scale = fit_scale(seen, self.grid)


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
