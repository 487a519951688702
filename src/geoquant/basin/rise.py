"""By how much is the loss above that of the float model, at other weights or in another model?

Every sample is compared with itself, so the standard error of the rise is far below that of either loss. The rise of
a divergence is the divergence: the float model's own is zero. The samples are the caller's; on those that a codeword
was chosen by, its rise promises nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from geoquant.data import collect
from geoquant.errors import DataError, ModelError, UnknownNameError, suggest
from geoquant.evaluation import Mean, WeightedMean, cross_entropy_per_sample, kl_per_sample
from geoquant.geometry.criterion import SquaredError
from geoquant.geometry.objective import studied
from geoquant.models import Forward, inference, predict, prediction_mask, targets_of

LOSSES = ("cross_entropy", "kl", "squared_error")
SampleLoss = Callable[[Tensor, Any], Tensor]
"""A loss of one's own: ``loss(logits, batch)``, (samples,)."""
FEWEST = 16
"""Samples are not cut below so many, however many predictions each holds: the spread between them is the error bar."""
Point = Mapping[str, Tensor]
"""Weights by the name of their parameter; those that are not named stay as they are."""


def usual_loss(batches: Sequence[Any], model: nn.Module) -> str:
    """Name cross-entropy where there are integer targets, squared error where they are real, divergence without."""
    targets = targets_of(batches[0], model)
    if targets is None:
        return "kl"
    return "squared_error" if targets.is_floating_point() else "cross_entropy"


class LossRise:
    """The loss above the float model's, in nats per prediction, always on the same samples.

    The model may change afterwards: what is needed of it is copied.

    Args:
        model: the float model.
        batches: labelled, unless the loss is the divergence.
        loss: "cross_entropy", "kl" (to the float model), "squared_error", a function ``loss(logits, batch)`` that gives
            (samples,), or "auto".
        forward: how to call the model.

    Attributes:
        name: of the loss.
        float_loss: the float model's own.
        batches: as they were given.
        own: the caller's loss, where it is one.

    Raises:
        DataError: there is no batch, or targets are missing.
        ModelError: the float model's loss is not finite.
        UnknownNameError: there is no such loss.

    >>> layer = nn.Linear(1, 1, bias=False).double()
    >>> with torch.no_grad(): _ = layer.weight.fill_(1.0)
    >>> data = [(torch.ones(2, 1).double(), torch.ones(2, 1).double())]  # ½(w − 1)²
    >>> LossRise(layer, data).at({"weight": torch.tensor([[3.0]])})
    Mean(value=2.0, stderr=0.0, samples=2)
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        loss: str | SampleLoss = "auto",
        forward: Forward | None = None,
    ) -> None:
        self.batches = collect(batches)
        self._model = copy.deepcopy(model).eval()
        self._forward, self._loss = forward, loss
        self.own = loss if callable(loss) else None
        if not callable(loss):
            self._loss = usual_loss(self.batches, model) if loss == "auto" else loss
            if self._loss not in LOSSES:
                raise UnknownNameError(f"there is no loss named '{loss}'{suggest(str(loss), LOSSES)}")
        self.name = self._loss if isinstance(self._loss, str) else getattr(loss, "__name__", "loss")
        self._reference: list[Tensor] = []
        with inference(self._model):
            found = [predict(self._model, batch, forward).float() for batch in self.batches]
        self._reference = [each.clone() for each in found] if self._loss == "kl" else []  # clones may meet autograd
        self._before = [self._values(index, logits) for index, logits in enumerate(found)]
        self.float_loss = self._mean([values for values, _ in self._before])
        if not math.isfinite(self.float_loss.value):
            raise ModelError("the float model's loss is not finite on these batches; mend the model or the data first")

    @property
    def samples(self) -> int:
        """Number of samples."""
        return self.float_loss.samples

    @property
    def per_sample(self) -> float:
        """Predictions that a sample holds, in the mean: 1 for an image, one a token for a window of text."""
        return sum(float(counts.sum()) for _, counts in self._before) / self.samples

    def enough(self, samples: int, predictions: int) -> int:
        """Return how many samples to look at: those that hold `predictions`, but 16 at least and `samples` at most."""
        needed = math.ceil(predictions / self.per_sample) if self.per_sample else samples
        return min(max(needed, FEWEST), samples, self.samples)

    def of(self, model: nn.Module) -> Mean:
        """Return the rise of `model`, another version of the float model; infinite where its loss is not finite."""
        rises = []
        with inference(model):
            for index, batch in enumerate(self.batches):
                values, _ = self._values(index, predict(model, batch, self._forward).float())
                rises.append(values - self._before[index][0])
        return self._mean(rises)

    def at(self, point: Point) -> Mean:
        """Return the rise where the named parameters have other values."""
        with moved(self._model, point):
            return self.of(self._model)

    def gradient(self, point: Point) -> dict[str, Tensor]:
        """Return the gradient of the mean loss in the named parameters, at the values that `point` gives them."""
        parameters = {name: self._model.get_parameter(name) for name in point}
        total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        count = sum(float(counts.sum()) for _, counts in self._before)
        with moved(self._model, point), studied(self._model, parameters.values()):
            for index, batch in enumerate(self.batches):
                values, counts = self._values(index, predict(self._model, batch, self._forward).float())
                mean = (values * counts.to(values)).sum() / count
                for name, part in zip(total, torch.autograd.grad(mean, list(parameters.values())), strict=True):
                    total[name] += part
        return total

    def _values(self, index: int, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of each sample and its number of predictions, both (samples,)."""
        batch = self.batches[index]
        if self._loss == "cross_entropy":
            return cross_entropy_per_sample(logits, batch, self._model)
        if self._loss == "kl":
            reference = self._reference[index]
            return kl_per_sample(reference, logits, prediction_mask(batch, logits))
        if self._loss == "squared_error":
            rows = logits.reshape(len(logits), -1)
            values = SquaredError().values(rows, targets_of(batch, self._model))
        else:
            assert callable(self._loss)
            values = self._loss(logits, batch)
            if tuple(values.shape) != (len(logits),):
                raise DataError(
                    f"the loss gave shape {tuple(values.shape)} for {len(logits)} samples; one each is needed"
                )
        return values, torch.ones_like(values)

    def _mean(self, values: Sequence[Tensor]) -> Mean:
        mean = WeightedMean()
        for index, each in enumerate(values):
            mean.add(each, self._before[index][1])
        found = mean.result()
        return found if math.isfinite(found.value) else Mean(math.inf, 0.0, found.samples)


@contextmanager
def moved(model: nn.Module, point: Point) -> Iterator[None]:
    """Give parameters of `model` other values for a while; their own bits come back afterwards."""
    saved = {name: model.get_parameter(name).detach().clone() for name in point}
    try:
        _write_(model, point)
        yield
    finally:
        _write_(model, saved)


@torch.no_grad()
def _write_(model: nn.Module, point: Point) -> None:
    for name, value in point.items():
        model.get_parameter(name).copy_(value)
