"""Do what the plan says: put every weight on its grid, layer after layer, and mend what that moves.

With calibration batches, one pass visits layers and norms in the order of execution. Each layer is rounded for
the inputs that the already quantized layers before it give; each norm and bias is corrected for what then
arrives (`geoquant.quantize.correction`); what comes later sees both. All of it happens on a copy: an error
leaves the model as it was. Which grid each layer gets was decided before, by the plan.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from geoquant.data import collect
from geoquant.errors import PlanError
from geoquant.geometry import fit_scale, range_of
from geoquant.geometry.ranges import hooked
from geoquant.grids import ActivationQuantizer, Grid, QuantizedMatrix
from geoquant.models import (
    Arrival,
    Forward,
    Site,
    check_finite,
    get_weight,
    inference,
    other_tensors,
    predict,
    set_weight_,
    take_inventory,
    walk_in_lockstep,
)
from geoquant.models.entering import owners
from geoquant.models.moments import input_moment, moment_of_all_calls
from geoquant.plan import Plan
from geoquant.progress import task
from geoquant.quantize.activations import install_, left_in_float, quantizers_of
from geoquant.quantize.correction import (
    FloatRecord,
    correct_bias_,
    correct_norm_,
    has_bias,
    is_stored_norm,
    record_float,
)
from geoquant.quantize.recipes import Recipe, Refinement, choose_recipe
from geoquant.quantize.state import QuantizedState, attach_, is_quantized
from geoquant.rounding import Rounding, RoundingContext, uses_inputs
from geoquant.transforms import Names, find_transforms, transformed

Model = TypeVar("Model", bound=nn.Module)


def quantize_(
    model: Model,
    plan: Plan,
    calibration: Iterable[Any] | None = None,
    *,
    effort: str | None = None,
    rounding: str | Rounding | None = None,
    norms: str | None = None,
    refine: str | Refinement | None = None,
    transforms: Names = (),
    forward: Forward | None = None,
    seed: int = 0,
) -> Model:
    """Round every weight of `model` to the grid that `plan` gives it, in place; return the model.

    Args:
        model: the float model that the plan was made for.
        plan: a grid per site.
        calibration: batches without need of labels; a few hundred samples do.
        effort: "fast", "balanced" or "best" (`EFFORTS`); by default "balanced" with calibration, and plain nearest
            rounding without. What is given below replaces parts of it.
        rounding: a registered rounding or one of your own.
        norms: "relative" corrects batch norms and biases against the float model, "none" leaves them.
        refine: "blocks" or "network" learn the codes afterwards, "none" does not.
        transforms: what rewrites the model before anything is rounded, by name or your own (`geoquant.transforms`).
        forward: how to call the model, where the usual ways do not fit.
        seed: of every random draw.

    Raises:
        PlanError: the plan belongs to another model, the model is quantized already, or calibration is missing (also:
            for static activation ranges).
        DataError: the calibration set is empty or not finite.
        ModelError: a weight is NaN or Inf, or the model cannot be called.
        GridError: a grid cannot hold the weights.
        UnknownNameError: there is no such effort, rounding, norm correction, refinement or transform.
    """
    if is_quantized(model):
        raise PlanError("this model is quantized already; quantize the float model again")
    inventory = take_inventory(model)
    plan.inventory.check_same_layout(inventory)
    check_finite(model)
    recipe = choose_recipe(effort, rounding, norms, refine, calibration is not None)
    static = [name for name, grid in plan.activation_grids.items() if not grid.dynamic]
    if calibration is None and static:
        raise PlanError(
            f"the input of '{static[0]}' has a static grid, whose range needs calibration batches; "
            "give some, or make it dynamic"
        )
    batches = None if calibration is None else collect(calibration)
    base, reports = model, None
    if chosen := find_transforms(transforms):
        base, reports = transformed(model, chosen, batches, plan, forward, seed)
    if batches is None or not (recipe.needs_data or static):
        matrices, work = _round_blindly(base, plan, recipe.method, seed), base
        state = QuantizedState(plan, matrices, in_float=left_in_float(base, plan, {}))
    else:
        work = copy.deepcopy(base)
        state = _Walk(base, work, plan, recipe, seed).run(batches, forward)
        if recipe.refinement is not None:
            matrices = recipe.refinement(base, work, inventory.sites, state.matrices, batches, forward, seed)
            scales = {each.name: each.scale for each in quantizers_of(work) if not each.grid.dynamic}
            state = replace(state, matrices=matrices, scales=scales)
    state = replace(state, latents=_weights(base, inventory.sites), transforms=reports or ())
    attach_(model, state, inventory.sites)
    _copy_others_(work, model, inventory.sites)
    return model


def quantize(model: Model, plan: Plan, calibration: Iterable[Any] | None = None, **settings: Any) -> Model:
    """Return a quantized copy of `model`; arguments are those of `quantize_`."""
    return quantize_(copy.deepcopy(model), plan, calibration, **settings)


def _round_blindly(model: nn.Module, plan: Plan, method: Rounding, seed: int) -> dict[str, QuantizedMatrix]:
    """Round every site from its weights alone."""
    matrices = {}
    with task("quantizing", len(plan.grids)) as advance:
        for index, (site, grid) in enumerate(zip(plan.inventory.sites, plan.grids, strict=True)):
            matrices[site.parameter] = _rounded(model, site, grid, method, RoundingContext(seed=seed + index))
            advance()
    return matrices


def _rounded(model: nn.Module, site: Site, grid: Grid, method: Rounding, context: RoundingContext) -> QuantizedMatrix:
    return method(site.matrix(get_weight(model, site)).float(), grid, context)


def _weights(model: nn.Module, sites: tuple[Site, ...]) -> dict[str, Tensor]:
    return {site.parameter: get_weight(model, site).clone() for site in sites}


def _copy_others_(source: nn.Module, target: nn.Module, sites: tuple[Site, ...]) -> None:
    """Copy everything that is no site's weight: the corrected norms and biases."""
    found = other_tensors(source, sites)
    for name, tensor in other_tensors(target, sites).items():
        with torch.inference_mode() if tensor.is_inference() else torch.no_grad():
            tensor.copy_(found[name])


class _Walk:
    """One pass over the layers and norms of `work`, a copy of the float model, in the order of execution."""

    def __init__(self, model: nn.Module, work: nn.Module, plan: Plan, recipe: Recipe, seed: int) -> None:
        self._model, self._work = model, work
        self._plan, self._method, self._norms, self._seed = plan, recipe.method, recipe.norms, seed
        self._names = {module: name for name, module in work.named_modules()}
        self._sites: dict[nn.Module, list[int]] = {}
        for index, site in enumerate(plan.inventory.sites):
            for parameter in (site.parameter, *site.aliases):
                owner = work.get_submodule(parameter.rpartition(".")[0])
                self._sites.setdefault(owner, []).append(index)
        self._matrices: dict[str, QuantizedMatrix] = {}
        self._unseen: list[str] = []
        self._record = FloatRecord()
        self._reused: dict[int, Tensor] = {}
        self._quantizers = install_(work, plan)

    def run(self, batches: Sequence[Any], forward: Forward | None) -> QuantizedState:
        """Round and correct everything; return codes of all sites."""
        norms = [module for module in self._work.modules() if is_stored_norm(module)]
        stations = [*self._sites, *(norms if self._norms == "relative" else ())]
        names = [self._names[station] for station in stations]
        self._record = record_float(self._model, batches, names, forward)
        stations = [self._work.get_submodule(name) for name in self._record.order]
        self._reused = self._moments_of_reused(batches, forward)
        self._fit_reused_(batches, forward)
        stations = self._with_quantizers(stations)
        with task("quantizing", len(stations)) as advance:

            def act(station: nn.Module, arrivals: Sequence[Arrival]) -> None:
                self._visit(station, arrivals)
                advance()

            walk_in_lockstep(self._work, batches, stations, act, forward)
            for index in range(len(self._plan.grids)):
                self._round(index, None)
        scales = {name: each.scale for name, each in self._quantizers.items() if not each.grid.dynamic}
        in_float = left_in_float(self._model, self._plan, scales)
        return QuantizedState(self._plan, self._matrices, tuple(self._unseen), scales, in_float)

    def _moments_of_reused(self, batches: Sequence[Any], forward: Forward | None) -> dict[int, Tensor]:
        """Measure, in the float model, the inputs of weights that one forward multiplies more than once."""
        if not uses_inputs(self._method):
            return {}
        users: dict[int, list[str]] = {}
        for module, indices in self._sites.items():
            for index in indices:
                users.setdefault(index, []).append(self._names[module])
        moments = {}
        for index, names in users.items():
            if sum(self._record.calls.get(name, 0) for name in names) > len(batches):
                found = moment_of_all_calls(self._model, batches, names, forward)
                if found is not None:
                    moments[index] = found
        return moments

    def _with_quantizers(self, stations: Sequence[nn.Module]) -> list[nn.Module]:
        """Put the quantizer of each input before its layer, those of operations last."""
        left = {name: each for name, each in self._quantizers.items() if not each.grid.dynamic}
        before: dict[nn.Module, list[nn.Module]] = {}
        for site in self._plan.inventory.sites:
            if site.name in left:
                owner, _ = owners(self._work, site)[0]
                before.setdefault(owner, []).append(left.pop(site.name))
        ordered = [each for station in stations for each in (*before.pop(station, ()), station)]
        return [*ordered, *(each for unvisited in before.values() for each in unvisited), *left.values()]

    def _fit_reused_(self, batches: Sequence[Any], forward: Forward | None) -> None:
        """Range, in the float model, the inputs of layers that one forward calls more than once."""
        for site in self._plan.inventory.sites:
            quantizer = self._quantizers.get(site.name)
            names = [self._names[owner] for owner, _ in owners(self._work, site)]
            calls = sum(self._record.calls.get(name, 0) for name in names)
            if quantizer is None or quantizer.grid.dynamic or calls <= len(batches):
                continue
            seen: list[Tensor] = []
            with inference(self._model), hooked(self._model, names, "inputs", lambda _, x: seen.append(x.clone())):  # noqa: B023
                for batch in batches:
                    predict(self._model, batch, forward)
            quantizer.scale = fit_scale(range_of(seen, site.name), quantizer.grid)

    def _fit(self, quantizer: ActivationQuantizer, arrivals: Sequence[Arrival]) -> None:
        tensors = [each for arrival in arrivals for each in arrival.args if each.is_floating_point() and each.numel()]
        if quantizer.scale.scale == 0 and tensors:
            quantizer.scale = fit_scale(range_of(tensors, quantizer.name), quantizer.grid)

    def _visit(self, station: nn.Module, arrivals: Sequence[Arrival]) -> None:
        if isinstance(station, ActivationQuantizer):
            self._fit(station, arrivals)
            return
        name = self._names[station]
        if is_stored_norm(station):
            if self._once(name, arrivals):
                correct_norm_(station, self._record.inputs[name], arrivals)
            return
        for index in self._sites[station]:
            moment = self._reused.get(index)
            if moment is None and uses_inputs(self._method):
                moment = input_moment(station, self._plan.inventory.sites[index], arrivals)
            self._round(index, moment)
        if self._norms == "relative" and has_bias(station) and self._once(name, arrivals):
            correct_bias_(station, self._record.outputs[name], arrivals)

    def _once(self, name: str, arrivals: Sequence[Arrival]) -> bool:
        """Whether the float model called this module exactly as often as the quantized one does now."""
        return self._record.calls.get(name, 0) == len(arrivals)

    def _round(self, index: int, moment: Tensor | None) -> None:
        site, grid = self._plan.inventory.sites[index], self._plan.grids[index]
        if site.parameter in self._matrices:
            return
        if moment is None and uses_inputs(self._method) and grid.granularity.scaled:
            self._unseen.append(site.name)
        context = RoundingContext(moment, self._seed + index)
        quantized = _rounded(self._work, site, grid, self._method, context)
        self._matrices[site.parameter] = quantized
        set_weight_(self._work, site, site.restore(quantized.dequantize()))
