"""Rewrite a model so that it rounds better, and prove on the spot that it still computes the same."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from geoquant.data import collect
from geoquant.errors import ModelError, PlanError
from geoquant.models import Forward, check_finite, inference, predict, take_inventory
from geoquant.models.sites import writing
from geoquant.plan import Plan
from geoquant.transforms.protocol import TRANSFORMS, Transform, TransformContext, TransformReport, needs_plan

Model = TypeVar("Model", bound=nn.Module)
Names = str | Transform | Sequence[str | Transform]


def transform_(
    model: nn.Module,
    transforms: Names,
    calibration: Iterable[Any] | None = None,
    plan: Plan | None = None,
    *,
    forward: Forward | None = None,
    seed: int = 0,
) -> tuple[TransformReport, ...]:
    """Rewrite `model` in place by one transform after another; return what each of them did and left.

    Names, shapes and dtypes of all tensors stay, so a plan for the model fits it afterwards.

    Args:
        model: a float model.
        transforms: registered names, or transforms of your own, in this order.
        calibration: batches without need of labels; the first also shows who reads what, so one is needed always.
        plan: which grid each weight will get; "awq" searches on it, "equalize" and "smoothquant" look at it.
        forward: how to call the model, where the usual ways do not fit.
        seed: of every random draw.

    Raises:
        UnknownNameError: there is no such transform.
        PlanError: calibration or a plan is missing, or the plan belongs to another model.
        DataError: the calibration set is empty or not finite.
        ModelError: a weight is NaN or Inf, the model cannot be called, or its outputs would change. The model is
            untouched in each case.

    >>> model = nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 1))
    >>> _ = model[0].weight.data.fill_(3.0)
    >>> print(transform_(model, "absorb", [torch.randn(5, 2)])[0])
    absorb: 1 applied, 0 left
      0 → 1
    """
    work, reports = transformed(model, transforms, calibration, plan, forward, seed)
    found = dict(_tensors(work))
    for name, tensor in _tensors(model):
        with writing(tensor):
            tensor.copy_(found[name])
    return reports


def transform(
    model: Model, transforms: Names, calibration: Iterable[Any] | None = None, plan: Plan | None = None, **settings: Any
) -> Model:
    """Return a transformed copy of `model`; arguments are those of `transform_`."""
    return transformed(model, transforms, calibration, plan, **settings)[0]


def transformed(
    model: Model,
    transforms: Names,
    calibration: Iterable[Any] | None = None,
    plan: Plan | None = None,
    forward: Forward | None = None,
    seed: int = 0,
) -> tuple[Model, tuple[TransformReport, ...]]:
    """Return a transformed copy of `model`, and what was done to it; arguments are those of `transform_`."""
    chosen = find_transforms(transforms)
    check_needs(chosen, calibration is not None, plan)
    check_finite(model)
    work = copy.deepcopy(model)
    if not chosen:
        return work, ()
    batches = collect(calibration if calibration is not None else ())
    inventory = take_inventory(model)
    if plan is not None:
        plan.inventory.check_same_layout(inventory)
    context = TransformContext(batches, plan, forward, seed)
    reports = tuple(transform(work, context) for transform in chosen)
    inventory.check_same_layout(take_inventory(work))
    check_finite(work)
    _check_same_function(model, work, batches[0], forward)
    return work, reports


def find_transforms(transforms: Names) -> tuple[Transform, ...]:
    """Return the transforms that names stand for."""
    listed = [transforms] if isinstance(transforms, str) or callable(transforms) else transforms
    return tuple(TRANSFORMS[each] if isinstance(each, str) else each for each in listed)


def check_needs(transforms: Sequence[Transform], calibrated: bool, plan: Plan | None) -> None:
    """Raise `PlanError` where something is missing that a transform looks at."""
    if transforms and not calibrated:
        raise PlanError("a transform must see the model run once to know who reads what; pass calibration batches")
    if plan is None and any(map(needs_plan, transforms)):
        raise PlanError("this transform searches on the grids that the weights will get; pass plan=")


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _check_same_function(model: nn.Module, work: nn.Module, batch: Any, forward: Forward | None) -> None:
    """Raise where the outputs differ by more than the parameters' own rounding can explain."""
    with inference(model), inference(work):
        wanted, found = (predict(net, batch, forward) for net in (model, work))
    if wanted.shape == found.shape and wanted.numel():
        difference = float((found.double() - wanted.double()).abs().max()) / max(float(wanted.abs().max()), 1e-30)
        if difference <= torch.finfo(wanted.dtype).eps ** 0.5:
            return
    raise ModelError(
        "the transformed model gives other outputs than the model, which stays as it was: its forward uses a weight in "
        "a way that one recorded call does not show; leave this transform out"
    )
