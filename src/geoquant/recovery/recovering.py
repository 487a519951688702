"""Does training with quantized weights bring back what rounding lost?

`recover_` trains a quantized model, or a float one that it first quantizes by the plan, and leaves an ordinary
quantized model: packed bytes are the plan's, `save` and `load` keep its logits to the bit. It works on a copy; the
model changes only at the end. It needs data like that of the task, and a backward pass; it can leave a net worse when
rates are too high, which validation would show. Why training can find what rounding cannot: `docs/recovery.md`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import nn

from geoquant.data import collect
from geoquant.errors import PlanError
from geoquant.models import Forward, take_inventory
from geoquant.plan import Plan
from geoquant.quantize import is_quantized, quantize, quantized_state
from geoquant.recovery.certifying import Witness
from geoquant.recovery.distributing import make_crew
from geoquant.recovery.feeding import Source, as_source
from geoquant.recovery.latents import prepare_
from geoquant.recovery.objective import Loss, Objective
from geoquant.recovery.run import Recovered, Run, Watching
from geoquant.recovery.settings import RecoveryError, Settings
from geoquant.search.samples import check_disjoint

_CALIBRATION = 512
_WATCHING = {each.name for each in fields(Watching)}


def recover_(
    model: nn.Module,
    plan: Plan,
    batches: Any,
    loss: Loss | None = None,
    *,
    teacher: nn.Module | None = None,
    layers: Iterable[str] | None = None,
    forward: Forward | None = None,
    calibration: Iterable[Any] | None = None,
    parallel: str = "auto",
    watching: Watching | None = None,
    **options: Any,
) -> Recovered:
    """Train a quantized model on its grids, in place.

    Args:
        model: quantized by this plan; or the float model, which is quantized first and then serves as the teacher.
        plan: a grid per site.
        batches: what to train on: a list of batches, a loader, or a `Source` such as `geoquant.data.AugmentedImages`.
        loss: ``loss(logits, batch)``; cross-entropy with the batch's targets when None.
        teacher: the float model: its answers are learned (with ``labels=0.3``, three tenths of the loss come from
            labels), and its weights are where latent weights start.
        layers: names or patterns of the layers to train, for example those that a diagnosis names; all when None.
        forward: how to call the model, where the usual ways do not fit.
        calibration: for a float model: batches to quantize with; the first 512 training samples when None.
        parallel: "auto", "none", "ddp" or "fsdp" (see `geoquant.recovery.distributing`).
        watching: validation, traces and checkpoints as one value.
        **options: fields of `Settings` (``epochs``, ``method``, ``rate``, ``norms``, ...) and of `Watching`
            (``validation``, ``checkpoint``, ``resume``, ...), which replace those of `watching`.

    Returns:
        What happened: losses, validation, a trace, a certificate.

    Raises:
        PlanError: the plan belongs to another model, or the model was quantized by another plan.
        DataError: there are no batches, or labels are wanted and missing.
        RecoveryError, UnknownNameError: a setting makes no sense, the checkpoint is of another run, or a certificate is
            asked without a teacher.
    """
    looks = {name: options.pop(name) for name in list(options) if name in _WATCHING}
    settings, watched = Settings(**options), replace(watching or Watching(), **looks)
    crew, source = make_crew(parallel), as_source(batches, settings.seed)
    with torch.random.fork_rng():
        work, teacher = _quantized_copy(model, plan, source, teacher, calibration, forward)
        objective = Objective(loss, teacher, settings.labels, settings.temperature, forward)
        latents = prepare_(
            work,
            reference=teacher,
            method=settings.method,
            layers=layers,
            activations=settings.activations,
            free=settings.free_rate > 0,
        )
        witness = _witness(model, teacher, batches, source, settings, watched, forward)
        result = Run(latents, source, objective, settings, watched, forward, crew, witness).go()
        latents.hand_over_(model)
    return result


def _quantized_copy(
    model: nn.Module,
    plan: Plan,
    source: Source,
    teacher: nn.Module | None,
    calibration: Iterable[Any] | None,
    forward: Forward | None,
) -> tuple[nn.Module, nn.Module | None]:
    """Return a quantized copy of `model` to train, and the teacher."""
    if not is_quantized(model):
        found = calibration if calibration is not None else _first(source)
        return quantize(model, plan, found, forward=forward), teacher if teacher is not None else model
    state = quantized_state(model)
    state.plan.inventory.check_same_layout(plan.inventory)
    if state.plan.names != plan.names or state.plan.activations != plan.activations:
        raise PlanError("the model was quantized by another plan; give the plan that `quantize_` carried out")
    if teacher is not None:
        plan.inventory.check_same_layout(take_inventory(teacher))
    return copy.deepcopy(model), teacher


def _witness(
    model: nn.Module,
    teacher: nn.Module | None,
    batches: Any,
    source: Source,
    settings: Settings,
    watched: Watching,
    forward: Forward | None,
) -> Witness | None:
    """Return who vouches for the result, where a certificate is asked."""
    wanted = watched.certify
    if wanted is None:
        return None
    if teacher is None:
        raise RecoveryError("a certificate compares with the float model; give it as teacher=")
    held_out = replace(wanted, batches=collect(wanted.batches))
    for seen in (watched.validation, batches):
        if isinstance(seen, Sequence):
            check_disjoint(seen, held_out.batches)
    return Witness(held_out, teacher, model, settings.total_steps(len(source)), len(source), forward)


def _first(source: Source) -> tuple[Any, ...]:
    return collect((source.batch(0, index) for index in range(len(source))), _CALIBRATION)
