"""Does training with quantized weights bring back what rounding lost?

`recover_` trains a quantized model, or a float one that it first quantizes by the plan, and leaves an ordinary
quantized model: packed bytes are the plan's, `save` and `load` keep its logits to the bit. It works on a copy; the
model changes only at the end. It needs data like that of the task, and a backward pass; it can leave a net worse when
rates are too high, which validation would show. Why training can find what rounding cannot: `docs/recovery.md`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from geoquant.data import collect
from geoquant.errors import PlanError
from geoquant.models import Forward, other_tensors, take_inventory
from geoquant.plan import Plan
from geoquant.progress import task
from geoquant.quantize import attach_, is_quantized, quantize, quantized_state
from geoquant.quantize.state import remember_
from geoquant.recovery.feeding import Source, as_source, mixed
from geoquant.recovery.judging import Judge
from geoquant.recovery.latents import Latents, prepare_
from geoquant.recovery.objective import Loss, Objective
from geoquant.recovery.running import Stepper, reestimate_norms_, training_mode_
from geoquant.recovery.settings import Settings

_CALIBRATION = 512


@dataclass(frozen=True, eq=False)
class Recovered:
    """What a recovery did.

    Attributes:
        settings: what it was asked.
        steps: optimizer steps that led to the result.
        losses: training loss of every step taken.
        start: validation loss before the first step; None without validation data.
        best: validation loss of the result; None without validation data.
    """

    settings: Settings
    steps: int
    losses: tuple[float, ...]
    start: float | None = None
    best: float | None = None


def recover_(
    model: nn.Module,
    plan: Plan,
    batches: Any,
    loss: Loss | None = None,
    *,
    teacher: nn.Module | None = None,
    layers: Iterable[str] | None = None,
    validation: Sequence[Any] | None = None,
    validate_every: int | None = None,
    patience: int | None = None,
    forward: Forward | None = None,
    calibration: Iterable[Any] | None = None,
    **settings: Any,
) -> Recovered:
    """Train a quantized model on its grids, in place.

    Args:
        model: quantized by this plan; or the float model, which is quantized first and then serves as the teacher.
        plan: a grid per site.
        batches: what to train on: a list of batches, a loader, or a `Source`.
        loss: ``loss(logits, batch)``; cross-entropy with the batch's targets when None.
        teacher: the float model: its answers are learned (with ``labels=0.3``, three tenths of the loss come from
            labels), and its weights are where latent weights start.
        layers: names or patterns of the layers to train, for example those that a diagnosis names; all when None.
        validation: batches on which the same loss is measured before training, every `validate_every` steps (an epoch,
            when None) and at the end; the best state seen is what remains, the one before training included.
        validate_every: steps.
        patience: stop after so many validations without a better one.
        forward: how to call the model, where the usual ways do not fit.
        calibration: for a float model: batches to quantize with; the first 512 training samples when None.
        **settings: fields of `Settings`: ``epochs``, ``method``, ``rate``, ``norms``, ...

    Raises:
        PlanError: the plan belongs to another model, or the model was quantized by another plan.
        DataError: there are no batches, or labels are wanted and missing.
        RecoveryError, UnknownNameError: a setting makes no sense.
    """
    chosen = Settings(**settings)
    source = as_source(batches, chosen.seed)
    work, teacher = _quantized_copy(model, plan, source, teacher, calibration, forward)
    objective = Objective(loss, teacher, chosen.labels, chosen.temperature, forward)
    latents = prepare_(
        work,
        reference=teacher,
        method=chosen.method,
        layers=layers,
        activations=chosen.activations,
        free=chosen.free_rate > 0,
    )
    run = _Run(latents, source, objective, chosen, Judge(objective, validation, patience), validate_every, forward)
    result = run.go()
    _hand_over_(latents, model)
    return result


class _Run:
    """One training run on a prepared model."""

    def __init__(
        self,
        latents: Latents,
        source: Source,
        objective: Objective,
        settings: Settings,
        judge: Judge,
        validate_every: int | None,
        forward: Forward | None,
    ) -> None:
        self._latents, self._source, self._settings, self._judge = latents, source, settings, judge
        self._total = settings.total_steps(len(source))
        self._every = validate_every or len(source)
        self._forward = forward
        self._stepper = Stepper(latents.model, latents, objective, settings, self._total)

    def go(self) -> Recovered:
        model, settings, losses = self._latents.model, self._settings, list[float]()
        training_mode_(model, settings)
        with torch.random.fork_rng(), task("recovering", self._total) as advance:
            torch.manual_seed(mixed(settings.seed, 0))
            self._judge.look(model, 0)
            for step in range(self._total):
                batch = self._batch(step)
                losses.append(float(self._stepper.gradient_(batch)))
                self._stepper.move_(step)
                advance()
                done = step + 1
                if done % self._every == 0 and done < self._total and not self._judge.look(model, done):
                    break
            steps = self._finish_(len(losses))
        return Recovered(settings, steps, tuple(losses), self._judge.start, self._judge.best)

    def _batch(self, step: int) -> Any:
        return self._source.batch(*divmod(step, len(self._source)))

    def _finish_(self, done: int) -> int:
        """Re-estimate the norms, and go back to the best state; return the step it is from."""
        model, settings = self._latents.model, self._settings
        if settings.norms == "train" and settings.reestimate:
            first = max(0, done - settings.reestimate)
            reestimate_norms_(model, (self._batch(step) for step in range(first, done)), self._forward)
        self._judge.look(model, done)
        best = self._judge.restore_(model)
        model.eval()
        return done if best is None else best


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


def _first(source: Source) -> tuple[Any, ...]:
    return collect((source.batch(0, index) for index in range(len(source))), _CALIBRATION)


@torch.no_grad()
def _hand_over_(latents: Latents, model: nn.Module) -> None:
    """Make `model` what the trained copy has become."""
    work, was = latents.model, is_quantized(model)
    state = latents.finish_()
    sites = state.plan.inventory.sites
    if was:
        remember_(model, state)
    else:
        attach_(model, state, sites)
    found = other_tensors(work, sites)
    for name, tensor in other_tensors(model, sites).items():
        with torch.inference_mode() if tensor.is_inference() else torch.no_grad():
            tensor.copy_(found[name])
