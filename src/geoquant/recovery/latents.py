"""How does a quantized model become trainable, and an ordinary quantized model again?

`prepare_` puts a latent float weight behind every weight that is to be trained, so that the model computes what it
computed before and any loop or trainer can go on from there; `Latents.finish_` turns latent weights back into codes.
The latent weights start at the float weights, each moved into the cell of the code that rounding chose for it: training
begins at the quantized model that was measured, and weights whose rounding was a close call flip first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from geoquant.errors import PlanError
from geoquant.grids import ActivationQuantizer, QuantizedMatrix
from geoquant.models import Site, get_weight, other_tensors, select
from geoquant.models.entering import owners
from geoquant.plan import Plan
from geoquant.quantize import (
    QuantizedState,
    attach_,
    is_quantized,
    quantized_state,
    quantizers_of,
)
from geoquant.quantize.learning import into_cells
from geoquant.quantize.network import free_parameters
from geoquant.quantize.state import remember_
from geoquant.rates import half_cosine
from geoquant.recovery.latent_weight import LatentWeight
from geoquant.recovery.settings import Settings
from geoquant.recovery.sharding import whole

_HIGH_PRECISION = 16
_MARGIN = 0.25
"""Float weights outside the cells of their codes start so far inside, as a share of the cell. Rounding that looks at
inputs leaves many of them; if all started on the walls, the first steps would flip them together and undo it."""
_FIRST_THRESHOLD = 0.1  # of the oscillation frequency, from which the threshold of freezing falls


@dataclass(frozen=True, eq=False)
class Latents:
    """The trainable parts of a model that `prepare_` has prepared.

    Attributes:
        model: the prepared model.
        weights: what stands behind each trained weight, by the weight's name before.
        inputs: quantizers of activations whose scales are learned.
        free: names of the other parameters that are trained: norms and biases.
        state: what the model remembered when it was prepared.
        start: the float weights that the codes stood for, by the weight's name before.
        flags: which parameters required a gradient before.
    """

    model: nn.Module
    weights: dict[str, LatentWeight]
    inputs: tuple[ActivationQuantizer, ...]
    free: tuple[str, ...]
    state: QuantizedState
    start: dict[str, Tensor]
    flags: dict[str, bool]

    def latent(self, name: str) -> Tensor:
        """Return the latent weight behind the weight called `name`, detached; while sharded, the whole of it."""
        return whole(self._parameter(name))

    def gradient(self, name: str) -> Tensor:
        """Return the gradient of a latent weight, likewise; zeros where it has none."""
        parameter = self._parameter(name)
        return torch.zeros_like(whole(parameter)) if parameter.grad is None else whole(parameter.grad)

    def groups(self, settings: Settings) -> list[dict[str, Any]]:
        """Return parameter groups for an optimizer: latent weights, steps, and the free parameters."""
        latents = [self._parameter(name) for name in self.weights]
        steps = [each.stretch for each in self.weights.values() if each.stretch is not None]
        steps += [each.stretch for each in self.inputs if each.stretch is not None]
        free = [self.model.get_parameter(name) for name in self.free]
        found = [
            {"params": latents, "lr": settings.rate, "weight_decay": settings.weight_decay},
            {"params": steps, "lr": settings.step_rate, "weight_decay": 0.0},
            {"params": free, "lr": settings.free_rate, "weight_decay": 0.0},
        ]
        return [group for group in found if group["params"]]

    def _parameter(self, name: str) -> nn.Parameter:
        owner, _, attribute = name.rpartition(".")
        return self.model.get_submodule(owner).parametrizations[attribute].original  # type: ignore[index, union-attr, no-any-return]

    def watch_(self) -> None:
        """Track oscillations from now on (`geoquant.recovery.oscillation`)."""
        for name, each in self.weights.items():
            each.watch_(self._parameter(name))

    def begin_step_(self, done: float, settings: Settings) -> None:
        """Say that a step begins, at a share `done` of the run: for what is noted, frozen, and pulled in it."""
        rise = 1 - half_cosine(done)
        end = settings.freeze
        threshold = None if end is None else max(end, _FIRST_THRESHOLD) * (1 - rise) + end * rise
        for each in self.weights.values():
            each.pull = settings.dampening * rise
            each.note_(threshold)

    def bypass_(self, bypassed: bool) -> None:
        """Let the model multiply latent weights as they are, or quantized ones again."""
        for each in self.weights.values():
            each.bypassed = bypassed

    @torch.no_grad()
    def finished(self) -> QuantizedState:
        """Return codes and scales as they are now; the model stays as it is."""
        matrices = {name: each.finish(self.latent(name)) for name, each in self.weights.items()}
        scales = {each.name: each.moved(whole(each.stretch)) for each in self.inputs if each.stretch is not None}
        return replace(self.state, matrices={**self.state.matrices, **matrices}, scales={**self.state.scales, **scales})

    def finish_(self) -> QuantizedState:
        """Turn the prepared model into an ordinary quantized model, in place; return what it remembers.

        A model that FSDP has sharded stays as it is: write into another one with `hand_over_`.
        """
        state = self.finished()
        for name in self.weights:
            for owner, attribute in owners(self.model, _site(state.plan, name)):
                parametrize.remove_parametrizations(owner, attribute, leave_parametrized=False)
        for each in self.inputs:
            delattr(*_place(self.model, state.plan, each))
            each.stretch = None
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self.flags[name])
        remember_(self.model, state)
        return state

    @torch.no_grad()
    def hand_over_(self, model: nn.Module) -> QuantizedState:
        """Give what was trained to another model of the same layout, float or quantized; return what it remembers."""
        state, sites = self.finished(), self.state.plan.inventory.sites
        if is_quantized(model):
            remember_(model, state)
        else:
            attach_(model, state, sites)
        found = self.model.state_dict()
        for name, tensor in other_tensors(model, sites).items():
            with torch.inference_mode() if tensor.is_inference() else torch.no_grad():
                tensor.copy_(whole(found[name]))
        return state


def prepare_(
    model: nn.Module,
    *,
    reference: nn.Module | None = None,
    method: str = "lsq",
    layers: Iterable[str] | None = None,
    activations: bool = True,
    free: bool = True,
) -> Latents:
    """Make a quantized model trainable, in place: it computes the same as before, from latent weights.

    Args:
        model: quantized by `quantize_` or `load`.
        reference: the float model, where latent weights start; by default what `quantize_` kept of it, and for a
            model from a file the levels themselves.
        method: "lsq" learns the steps too, "ste" does not.
        layers: names or ``re:`` patterns of the layers to train; all when None. Weights in 16 bits or more are left
            alone, like the layers that are not named.
        activations: whether static scales of activations become parameters.
        free: whether norms and biases are trained.

    Raises:
        PlanError: the model is not quantized, was changed since, or has nothing to train.
        LayerNameError: a name or pattern matches nothing.
    """
    state = quantized_state(model)
    sites = _chosen(state, layers)
    starts = {site.parameter: _float_weight(model, reference, state, site) for site in sites}
    names = tuple(free_parameters(model, state.plan.inventory.sites)) if free else ()
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name in names:
        model.get_parameter(name).requires_grad_(True)
    weights = {site.parameter: _parametrize_(model, site, state, starts, method == "lsq") for site in sites}
    device = next(model.parameters()).device
    inputs = [each for each in quantizers_of(model) if activations and each.start_learning_(device) is not None]
    for each in inputs:
        owner, attribute = _place(model, state.plan, each)
        owner.add_module(attribute, each)
    return Latents(model, weights, tuple(inputs), names, state, starts, flags)


def _chosen(state: QuantizedState, layers: Iterable[str] | None) -> list[Site]:
    sites = state.plan.inventory.sites
    names = {site.name for site in sites} if layers is None else set(select([site.name for site in sites], layers))
    chosen = [
        site for site in sites if site.name in names and state.matrices[site.parameter].grid.bits < _HIGH_PRECISION
    ]
    if not chosen:
        raise PlanError("no layer is left to train: all that were named have 16 bits or more; name others in layers=")
    return chosen


def _float_weight(model: nn.Module, reference: nn.Module | None, state: QuantizedState, site: Site) -> Tensor:
    """Return the float weight that the codes of `site` stand for, in the memory format of the model's weight."""
    weight = get_weight(model, site)
    if reference is not None:
        found = get_weight(reference, site)
    else:
        found = state.latents.get(site.parameter, weight)
    return torch.empty_like(weight).copy_(found)


def _place(model: nn.Module, plan: Plan, quantizer: ActivationQuantizer) -> tuple[nn.Module, str]:
    """Return the module that shows the quantizer's parameter while it is trained, and the name there."""
    for site in plan.inventory.sites:
        if site.name == quantizer.name:
            return owners(model, site)[0][0], "geoquant_input"
    path, _, last = quantizer.name.rpartition(".")
    return model.get_submodule(path), "geoquant_" + last.replace(":", "_")


def _site(plan: Plan, name: str) -> Site:
    return next(site for site in plan.inventory.sites if site.parameter == name)


def _parametrize_(
    model: nn.Module, site: Site, state: QuantizedState, starts: Mapping[str, Tensor], learn_step: bool
) -> LatentWeight:
    matrix = state.matrices[site.parameter]
    parameter = model.get_parameter(site.parameter)
    latent = LatentWeight(site, matrix, learn_step).to(parameter.device)
    with torch.no_grad():
        parameter.copy_(_in_cells(site, matrix, starts[site.parameter]))
    parameter.requires_grad_(True)
    for owner, attribute in owners(model, site):
        parametrize.register_parametrization(owner, attribute, latent, unsafe=True)
    return latent


def _in_cells(site: Site, start: QuantizedMatrix, weight: Tensor) -> Tensor:
    """Return the point nearest to `weight` that rounds to the codes of `start`; rows whose scale is 0 as they are."""
    matrix = site.matrix(weight).float()
    grid, scales = start.grid, start.scales
    levels = grid.format.levels
    assert levels is not None
    x = into_cells(grid.normalize(matrix, scales), grid.format.decode(start.codes), levels.float(), _MARGIN)
    fan_in = matrix.shape[1]
    scale = grid.granularity.expand(scales.scale, fan_in)
    zero = 0 if scales.zero is None else grid.granularity.expand(scales.zero, fan_in)
    return site.restore(torch.where(scale == 0, matrix, (x - zero) * scale))
