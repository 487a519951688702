"""How do activations get onto their grids while the model runs?

Forward pre-hooks on the planned layers round their inputs; the operands of additions, softmaxes and products, which no
module owns, are caught where the forward calls them (`geoquant.quantize.intercept`). The rounding is simulated in
float, with a straight-through gradient, so training and inference mode both work. Hooks belong to the model: they
follow it through `copy.deepcopy`, keep out of its state dict, and are not touched by `load_state_dict`. Not covered,
and named in `QuantizedState.in_float`: what torch computes inside one operation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from geoquant.errors import ModelError
from geoquant.geometry import ActivationRange
from geoquant.grids import ActivationGrid, ActivationScale
from geoquant.models import Site, find_operations, is_traceable
from geoquant.plan import Plan, refusal
from geoquant.quantize.clipping import fit_scale
from geoquant.quantize.intercept import rounders_of, watch_operations_

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


class _InputHook:
    """Rounds the first input of a layer."""

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        self.quantizer = quantizer

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return ((self._rounded(args[0]), *args[1:]), kwargs) if isinstance(args[0], Tensor) else None
        first = next((name for name, value in kwargs.items() if isinstance(value, Tensor)), None)
        return None if first is None else (args, {**kwargs, first: self._rounded(kwargs[first])})

    def _rounded(self, value: Tensor) -> Tensor:
        rounded: Tensor = self.quantizer(value)
        return rounded


class _AttentionHook:
    """Rounds query, key and value of an attention module; what is one tensor stays one tensor."""

    names = ("query", "key", "value")

    def __init__(self, quantizer: ActivationQuantizer, places: tuple[int, ...]) -> None:
        self.quantizer, self.places = quantizer, places

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        entered = [*args[:3], *(kwargs[name] for name in self.names[len(args) :])]
        different = {id(entered[place]): entered[place] for place in self.places}
        rounded = self.quantizer(*different.values())
        parts = dict(zip(different, rounded if len(different) > 1 else [rounded], strict=True))
        entered = [parts.get(id(each), each) if place in self.places else each for place, each in enumerate(entered)]
        named = {name: each for name, each in zip(self.names, entered, strict=True) if name in kwargs}
        return (*entered[: len(args[:3])], *args[3:]), {**kwargs, **named}


_PLACES = {"q_proj_weight": (0,), "k_proj_weight": (1,), "v_proj_weight": (2,)}


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
    _check_known(model, [name for name in plan.activation_grids if name not in sites])
    found, operations = {}, {}
    for name, grid in plan.activation_grids.items():
        by_sample = name in sites and sites[name].kind.startswith("conv")
        quantizer = ActivationQuantizer(grid, scales.get(name, NOT_SEEN), by_sample, name)
        found[name] = quantizer
        if name in sites:
            for owner, parameter in owners(model, sites[name]):
                hook = _hook(owner, parameter, quantizer)
                owner.register_forward_pre_hook(hook, with_kwargs=True)
        else:
            operations[name] = quantizer
    if operations:
        watch_operations_(model, operations)
    return found


def quantizers_of(model: nn.Module) -> list[ActivationQuantizer]:
    """Return the quantizers in the hooks of `model`, each once."""
    found: dict[int, ActivationQuantizer] = {}
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            held = [hook.quantizer] if isinstance(hook, _InputHook | _AttentionHook) else rounders_of(hook)
            found.update((id(each), each) for each in held if isinstance(each, ActivationQuantizer))
    return list(found.values())


def owners(model: nn.Module, site: Site) -> list[tuple[nn.Module, str]]:
    """Return the modules that multiply the site's weight, with its name there; one unless the weight is tied."""
    pairs = (parameter.rpartition(".") for parameter in (site.parameter, *site.aliases))
    return [(model.get_submodule(path), last) for path, _, last in pairs]


def _hook(owner: nn.Module, parameter: str, quantizer: ActivationQuantizer) -> Callable[..., Any]:
    if isinstance(owner, nn.MultiheadAttention):
        return _AttentionHook(quantizer, _PLACES.get(parameter, (0, 1, 2)))
    return _InputHook(quantizer)


def _check_known(model: nn.Module, names: Sequence[str]) -> None:
    missing = sorted(set(names) - set(find_operations(model))) if names else []
    if missing:
        raise ModelError(
            f"the plan puts '{missing[0]}' on a grid, which this model does not compute or cannot be traced for; "
            "drop it from the plan with plan.with_activations(...)"
        )


def left_in_float(model: nn.Module, plan: Plan, quantizers: Mapping[str, ActivationQuantizer]) -> tuple[str, ...]:
    """Say which activations stay in float against what one may expect, each with its reason."""
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
    for name, each in quantizers.items():
        if not each.grid.dynamic and each.scale == NOT_SEEN:
            said.append(f"{name}: no calibration batch brought it anything but zeros")
    return tuple(said)
