"""What does every layer see, and what comes back to it, on one run of the calibration set?

Predictors that look at gradients or at layers' inputs share these loops: one forward, and one backward to the
layers' outputs, give every layer and sample at once (`geoquant.geometry.per_sample`). Where a batch
carries no labels, the model's own predictions stand in for them: one label per prediction is drawn from the
model's distribution, so that the mean of squared gradients is the Fisher information itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from geoquant.errors import DataError, ModelError
from geoquant.geometry import Objective, make_objective
from geoquant.geometry.factors import is_known
from geoquant.geometry.objective import PIECE, Scored
from geoquant.geometry.per_sample import Use, pull_back
from geoquant.geometry.sweep import Sweep, sweep
from geoquant.models import Site, batch_size, inference, predict, prediction_mask, targets_of
from geoquant.progress import task
from geoquant.sensitivity.protocol import Subject

IGNORED = -100


def objective_of(subject: Subject, piece: int = PIECE) -> Objective:
    """Return the objective whose outputs are read; gradients come from `loss_gradient`."""
    return make_objective(
        subject.model, subject.batches, subject.sites, loss="kl", forward=subject.forward, piece=piece
    )


def loss_gradient(subject: Subject, batch: Any, scored: Scored, index: int) -> Tensor:
    """Return ∂(a sample's mean loss)/∂outputs for each sample, (samples, predictions, classes), detached.

    Cross-entropy at integer targets, ½‖z − t‖² at real ones, and cross-entropy at drawn labels without any.

    Args:
        subject: its seed and `index` (the number of the batch) fix the labels that are drawn.
        batch: what `scored` came from.
        scored: outputs of the batch.
        index: number of the batch.
    """
    outputs = scored.outputs.detach()
    targets = targets_of(batch, subject.model)
    real = prediction_mask(batch, outputs)
    keep = torch.ones_like(outputs[..., 0], dtype=torch.bool) if real is None else real
    if targets is not None and targets.is_floating_point():
        residual = outputs - _fitting(targets, outputs.shape).to(outputs)
    else:
        labels = _drawn(outputs, subject.seed, index) if targets is None else _fitting(targets, outputs.shape[:2])
        keep = keep & (labels != IGNORED)
        residual = outputs.softmax(-1) - F.one_hot(labels.clamp(min=0), outputs.shape[-1]).to(outputs)
    kept = keep.to(outputs)
    return residual * (kept / kept.sum(1, keepdim=True).clamp(min=1)).unsqueeze(-1)


def _drawn(outputs: Tensor, seed: int, index: int) -> Tensor:
    source = torch.Generator().manual_seed((seed * 1_000_003 + index) % (1 << 63))
    chances = outputs.double().softmax(-1).flatten(0, 1).cpu()
    return torch.multinomial(chances, 1, generator=source).view(outputs.shape[:2]).to(outputs.device)


def _fitting(targets: Tensor, shape: torch.Size) -> Tensor:
    if targets.numel() != shape.numel():
        raise DataError(
            f"targets of shape {tuple(targets.shape)} do not fit {tuple(shape)}: expected one class per prediction, or "
            "real values in the shape of the outputs; leave the targets out to use the model's own predictions"
        )
    return targets.reshape(shape)


def shifts_labels(subject: Subject) -> bool:
    """Say whether the model moves its labels by one token, as causal language models do."""
    given = targets_of(subject.batches[0])
    return given is not None and targets_of(subject.batches[0], subject.model) is not given


def loss_name(subject: Subject) -> str:
    """Return the loss for measures that differentiate twice: of the targets where they fit, else the divergence.

    The labels of causal language models stand one token beside the outputs that predict them, which those
    measures do not know; the divergence from the model's own predictions needs none.
    """
    return "kl" if shifts_labels(subject) else "auto"


@dataclass(frozen=True, eq=False)
class GradientRun:
    """One batch with the loss gradient at every layer's output.

    Attributes:
        run: the forward pass.
        sent: gradient at the outputs, a sample's own loss each.
        deltas: gradient at the output of every recorded call; None where nothing arrives.
        batch: the batch.
    """

    run: Sweep
    sent: Tensor
    deltas: list[Tensor | None]
    batch: Any

    def calls(self, place: int) -> tuple[list[Use], list[Tensor]]:
        """Return the calls that use one parameter and what came back to them."""
        found = [call for call in self.run.recorder.of(self.run.objective.unique[place]) if self._arrives(call)]
        return [self.run.recorder.uses[call] for call in found], [self._delta(call) for call in found]

    def _arrives(self, call: int) -> bool:
        return self.deltas[call] is not None

    def _delta(self, call: int) -> Tensor:
        delta = self.deltas[call]
        assert delta is not None
        return delta


# Forward, the check of whose row is whose, and one backward to the layers' outputs.
GRADIENT_COST = 4.0


def visit_gradients(subject: Subject, what: str, visit: Callable[[GradientRun], None]) -> None:
    """Run the calibration set in pieces, each with one backward to the layers' outputs; call `visit` with each."""
    objective = objective_of(subject)
    with objective.studied(), task(what, len(objective.batches)) as advance:
        for index, batch in enumerate(objective.batches):
            run = sweep(objective, batch)
            sent = loss_gradient(subject, batch, run.scored, index)
            visit(GradientRun(run, sent, pull_back(run.scored.outputs, run.recorder, sent), batch))
            advance()


def refuse_loose(subject: Subject, run: Sweep, predictor: str) -> None:
    """Raise `ModelError` for a site whose layer calls cannot be told apart by sample."""
    for place in run.loose:
        raise ModelError(_unseen(subject.sites[place], predictor))


def applied(module: nn.Module, weight: Tensor, seen: Tensor) -> Tensor:
    """Return what `module` answers to `seen` with another weight and no bias: linear in `weight`.

    >>> applied(nn.Linear(2, 1), torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])).tolist()
    [[11.0]]
    """
    own = {"weight": weight}
    bias = getattr(module, "bias", None)
    if isinstance(bias, Tensor):
        own["bias"] = torch.zeros_like(bias)
    with torch.no_grad():
        answer: Tensor = functional_call(module, own, (seen,))
    return answer


Look = Callable[[int, nn.Module, Tensor], None]


def visit_inputs(subject: Subject, predictor: str, look: Look, done: Callable[[int], None] | None = None) -> None:
    """Run the calibration set without autograd and show `look` what every site's layers see.

    Args:
        subject: whose batches are run, in pieces.
        predictor: its name, for errors and progress.
        look: called as ``look(place of the site, layer, input)`` just before each call of the layer.
        done: called with the number of samples after each piece.

    Raises:
        ModelError: a site's weight is never used by a call of a known layer.
    """
    objective = objective_of(subject)
    seen: set[int] = set()
    with (
        inference(subject.model),
        _watched(subject, seen, look),
        task(predictor, len(objective.batches)) as advance,
    ):
        for batch in objective.batches:
            predict(subject.model, batch, subject.forward)
            if done is not None:
                done(batch_size(batch))
            advance()
    for place, site in enumerate(subject.sites):
        if place not in seen:
            raise ModelError(_unseen(site, predictor))


@contextmanager
def _watched(subject: Subject, seen: set[int], look: Look) -> Iterator[None]:
    owners = {id(subject.model.get_parameter(site.parameter)): place for place, site in enumerate(subject.sites)}
    busy: list[bool] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if busy:  # `look` calls the layer itself
            return
        place = owners[id(module.weight)]
        seen.add(place)
        busy.append(True)
        try:
            look(place, module, args[0] if args else kwargs["input"])
        finally:
            busy.clear()

    handles = [
        module.register_forward_pre_hook(before, with_kwargs=True)
        for module in subject.model.modules()
        if is_known(module) and id(module.weight) in owners
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _unseen(site: Site, predictor: str) -> str:
    return (
        f"'{site.name}' cannot be scored by {predictor}: its weight is not used by calls of a Linear, convolution or "
        "Embedding layer alone; leave it out with exclude=, or choose another predictor"
    )
