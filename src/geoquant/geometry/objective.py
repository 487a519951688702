"""What is differentiated, with respect to what, over which data?

An `Objective` is a mean loss over batches seen as a function of named blocks of parameters. The model is
studied in eval mode (batch norm and dropout are fixed functions), with the chosen parameters
differentiable, frozen or not, and with attention on the math kernel, since fused kernels have no second
derivative. Everything is put back afterwards; gradients in ``.grad`` are never touched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from geoquant.errors import DataError, GeoquantError, LayerNameError, ModelError, suggest
from geoquant.geometry.criterion import CRITERIA, Criterion
from geoquant.geometry.pieces import split
from geoquant.models import Forward, batch_size, evaluating, predict, prediction_mask, targets_of

Loss = Callable[[nn.Module, Any], Tensor]


class HasParameter(Protocol):
    """What the geometry asks of a site: its name and the state-dict name of its parameter."""

    @property
    def name(self) -> str:
        """Name of the site in the answers."""
        ...

    @property
    def parameter(self) -> str:
        """State-dict name of the weight."""
        ...


# Samples worked on together. Small pieces stay in the cache and keep second-order graphs within the memory of
# an ordinary training step.
PIECE = 32

Chosen = Mapping[str, nn.Parameter] | Sequence["HasParameter | str"] | None


@contextmanager
def studied(model: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Put `model` in eval mode with exactly `parameters` differentiable; restore every flag afterwards."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    wanted = {id(parameter) for parameter in parameters}
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(id(parameter) in wanted)
        with evaluating(model), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@dataclass(frozen=True, eq=False)
class Scored:
    """The outputs of one batch as rows, with what the criterion needs.

    Attributes:
        outputs: (samples, predictions, classes), attached to the autograd graph.
        mask: (samples, predictions), which predictions count.
        targets: as they came with the batch.
        criterion: the loss of one row.
    """

    outputs: Tensor
    mask: Tensor
    targets: Tensor | None
    criterion: Criterion

    @property
    def rows(self) -> Tensor:
        """Outputs as (samples · predictions, classes)."""
        return self.outputs.flatten(0, 1)

    @property
    def count(self) -> float:
        """Number of predictions that count."""
        return float(self.mask.sum())

    def total(self) -> Tensor:
        """Return the loss summed over predictions, differentiable."""
        return self.criterion.values(self.rows, self.targets).masked_select(self.mask.flatten()).sum()

    def residual(self) -> Tensor:
        """Return ∂loss/∂outputs, detached, zero where masked; shape of `outputs`."""
        rows = self.criterion.residual(self.rows.detach(), self.targets)
        return rows.view_as(self.outputs) * self.mask.unsqueeze(-1)

    def half(self, directions: Tensor) -> Tensor:
        """Return S·directions per prediction, zero where masked; shapes of `outputs`."""
        rows = self.criterion.half(self.rows.detach(), directions.flatten(0, 1))
        return rows.view_as(self.outputs) * self.mask.unsqueeze(-1)

    def masked_hessian(self, rows: Tensor, directions: Tensor) -> Tensor:
        """Return H_z·directions for detached `rows` (predictions, classes), zero where masked."""
        return self.criterion.hessian(rows, directions) * self.mask.flatten().unsqueeze(-1)


@dataclass(frozen=True, eq=False)
class Objective:
    """A loss over batches as a function of named parameters.

    Attributes:
        model: the model, as the caller gave it.
        batches: materialised batches, cut into pieces that bound memory.
        parameters: name → parameter; names of tied weights share one parameter.
        criterion: the loss of an output row, or None when `loss` is a function of its own.
        loss: ``loss(model, batch) -> mean over the batch``, or None.
        forward: how the model is called, or None for the usual ways.
    """

    model: nn.Module
    batches: tuple[Any, ...]
    parameters: Mapping[str, nn.Parameter]
    criterion: Criterion | None
    loss: Loss | None = None
    forward: Forward | None = None

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the studied parameters, in order."""
        return tuple(self.parameters)

    @cached_property
    def unique(self) -> tuple[nn.Parameter, ...]:
        """The parameters, tied ones once."""
        return tuple({id(parameter): parameter for parameter in self.parameters.values()}.values())

    @cached_property
    def position(self) -> tuple[int, ...]:
        """For each name, the place of its parameter in `unique`."""
        places = {id(parameter): place for place, parameter in enumerate(self.unique)}
        return tuple(places[id(parameter)] for parameter in self.parameters.values())

    def studied(self) -> Any:
        """Open the context in which losses may be differentiated (see `studied`)."""
        return studied(self.model, self.unique)

    def scored(self, batch: Any) -> Scored:
        """Run `batch` and lay its outputs out as rows."""
        if self.criterion is None:
            raise GeoquantError("this needs a loss of the outputs (cross_entropy, kl, squared_error), not a function")
        outputs = predict(self.model, batch, self.forward)
        if not bool(outputs.isfinite().all()):
            raise ModelError("the model gives NaN or Inf on a batch; mend the model or the data before measuring")
        outputs = outputs.unsqueeze(-1) if outputs.dim() == 1 else outputs
        outputs = outputs.reshape(outputs.shape[0], -1, outputs.shape[-1])
        targets = targets_of(batch, self.model)
        mask = self.criterion.mask(outputs.flatten(0, 1), targets).view(outputs.shape[:2])
        kept = prediction_mask(batch, outputs)
        return Scored(outputs, mask if kept is None else mask & kept.view_as(mask), targets, self.criterion)

    def total(self, batch: Any) -> tuple[Tensor, float]:
        """Return the loss of `batch` summed over its predictions, and their number."""
        if self.loss is None:
            scored = self.scored(batch)
            return scored.total(), scored.count
        mean, size = self.loss(self.model, batch), float(batch_size(batch))
        if mean.dim() != 0:
            raise GeoquantError(f"loss(model, batch) must return a scalar mean, got shape {tuple(mean.shape)}")
        return mean * size, size


def make_objective(
    model: nn.Module,
    batches: Iterable[Any],
    chosen: Chosen = None,
    *,
    loss: str | Loss = "auto",
    forward: Forward | None = None,
    piece: int = PIECE,
) -> Objective:
    """Check what a measurement needs and gather it.

    Args:
        model: any module; its training mode does not matter.
        batches: tensors, (inputs, targets) pairs or mappings.
        chosen: sites, names of parameters or of layers (their weight), or name → parameter; None for all.
        loss: ``"cross_entropy"``, ``"kl"`` (to the model's own predictions), ``"squared_error"``, a function
            ``loss(model, batch) -> scalar mean``, or ``"auto"``: cross-entropy for integer targets, squared error
            for real ones, divergence without targets.
        forward: how to call the model.
        piece: larger batches are worked through in pieces of this many samples.

    Raises:
        DataError: there is no batch.
        LayerNameError: a name matches no parameter.
        ModelError: a parameter is not real-valued.

    >>> objective = make_objective(nn.Linear(3, 2), [torch.zeros(4, 3)], ["weight"])
    >>> objective.names, objective.criterion.name
    (('weight',), 'kl')
    """
    if torch.is_inference_mode_enabled():
        raise GeoquantError("second derivatives need autograd; call this outside torch.inference_mode")
    given = tuple(batches)
    if not given:
        raise DataError("there is no batch to measure on; expected at least one")
    parameters = choose_parameters(model, chosen)
    held = given if _couples_samples(model) else tuple(part for batch in given for part in split(batch, piece))
    if callable(loss):
        return Objective(model, held, parameters, None, loss, forward)
    name = _usual_loss(targets_of(given[0], model)) if loss == "auto" else loss
    return Objective(model, held, parameters, CRITERIA[name], None, forward)


def _couples_samples(model: nn.Module) -> bool:
    """Batch norm without running statistics reads the whole batch; cutting the batch would change the model."""
    return any(
        isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None
        for module in model.modules()
    )


def _usual_loss(targets: Tensor | None) -> str:
    if targets is None:
        return "kl"
    return "squared_error" if targets.is_floating_point() else "cross_entropy"


def choose_parameters(model: nn.Module, chosen: Chosen = None) -> dict[str, nn.Parameter]:
    """Resolve sites, names or a mapping to name → parameter, all of them floating point.

    >>> list(choose_parameters(nn.Sequential(nn.Linear(2, 2)), ["0"]))
    ['0']
    """
    known = dict(model.named_parameters(remove_duplicate=False))
    if chosen is None:
        found = dict(model.named_parameters())
    elif isinstance(chosen, Mapping):
        found = dict(chosen)
    else:
        found = dict(_resolve(known, entry) for entry in chosen)
    if not found:
        raise ModelError("there is no parameter to measure; expected at least one")
    _check_own_memory(model, found)
    for name, parameter in found.items():
        if parameter.is_inference():
            raise ModelError(f"parameter '{name}' was made under inference mode; clone it outside before measuring")
        if not parameter.is_floating_point():
            raise ModelError(f"parameter '{name}' has type {parameter.dtype}; expected a floating-point tensor")
    return found


def _check_own_memory(model: nn.Module, found: Mapping[str, nn.Parameter]) -> None:
    """Refuse weights that are tied by memory but not by object: autograd would see half of their uses."""
    owners = {id(parameter): (parameter.data_ptr(), tuple(parameter.shape)) for parameter in model.parameters()}
    shared = Counter(owners.values())
    for name, parameter in found.items():
        place = owners.get(id(parameter))
        if place is not None and parameter.numel() and shared[place] > 1:
            raise ModelError(
                f"parameter '{name}' shares its memory with another parameter object; tie them by making both names "
                "the same nn.Parameter"
            )


def _resolve(known: Mapping[str, nn.Parameter], entry: HasParameter | str) -> tuple[str, nn.Parameter]:
    name, path = (entry, entry) if isinstance(entry, str) else (entry.name, entry.parameter)
    for candidate in (path, f"{path}.weight"):
        if candidate in known:
            return name, known[candidate]
    raise LayerNameError(f"there is no parameter '{path}'{suggest(path, known)}")
