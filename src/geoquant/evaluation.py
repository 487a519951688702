"""How good is a model on data: accuracy, cross-entropy, and divergence from another model?

All figures are means over predictions (an image, a token), with the standard error of the mean taken
over samples (the first axis of a batch), since predictions inside one sample are correlated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geoquant.arrays import Floats
from geoquant.errors import DataError, ModelError
from geoquant.models import Forward, inference, predict, prediction_mask, targets_of
from geoquant.progress import task

TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 16.0)
STEADY = 0.05
"""A divergence whose standard error is at most this share of it is no longer luck."""


@dataclass(frozen=True)
class Mean:
    """A mean with its standard error over `samples` independent samples."""

    value: float
    stderr: float
    samples: int


class WeightedMean:
    """Accumulate per-sample values with weights; numerically plain, in float64.

    >>> mean = WeightedMean()
    >>> mean.add(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]))
    >>> mean.result()
    Mean(value=2.0, stderr=1.0, samples=2)
    """

    def __init__(self) -> None:
        self.samples = 0
        self._sums = torch.zeros(5, dtype=torch.float64)  # Σw, Σwv, Σw², Σw²v, Σw²v²

    def add(self, values: Tensor, weights: Tensor) -> None:
        """Add samples: `values` and `weights` are (n,)."""
        v, w = values.double().cpu(), weights.double().cpu()
        self.samples += len(v)
        self._sums += torch.stack([w.sum(), (w * v).sum(), (w * w).sum(), (w * w * v).sum(), (w * w * v * v).sum()])

    def result(self) -> Mean:
        """Return the ratio Σwv/Σw and the linearised standard error of that ratio."""
        total, weighted, squares, cross, energy = self._sums.tolist()
        if total == 0:
            raise DataError("no prediction to average: every position is masked")
        value = weighted / total
        if self.samples < 2:
            return Mean(value, 0.0, self.samples)
        residual = max(energy - 2 * value * cross + value * value * squares, 0.0)
        return Mean(value, math.sqrt(residual * self.samples / (self.samples - 1)) / total, self.samples)


def kl_per_sample(
    reference: Tensor, logits: Tensor, mask: Tensor | None = None, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return KL(reference ‖ logits) in nats, averaged inside each sample, and the predictions per sample.

    Args:
        reference: logits of the float model, (samples, ..., classes).
        logits: logits of the changed model, same shape.
        mask: which predictions count, (samples, ...); all when None.
        temperature: T²·KL of softmax(z/T). At high temperature this is half the variance, over the classes, of what
            logits move: all samples count about alike, where at 1 those that are unsure count most.

    >>> same = torch.zeros(2, 3)
    >>> kl_per_sample(same, same)[0].tolist()
    [0.0, 0.0]
    >>> kl_per_sample(torch.tensor([[9.0, 1.0]]), torch.tensor([[9.0, 3.0]]), temperature=1e3)[0].round(decimals=3)
    tensor([0.5000], dtype=torch.float64)
    """
    if reference.shape != logits.shape:
        raise ModelError(f"logits changed their shape from {tuple(reference.shape)} to {tuple(logits.shape)}")
    precise = torch.float32 if temperature == 1 else torch.float64  # flat predictions hardly differ
    log_p = F.log_softmax(reference.to(precise) / temperature, -1)
    log_q = F.log_softmax(logits.to(precise) / temperature, -1)
    each = temperature**2 * (log_p.exp() * (log_p - log_q)).sum(-1)
    return _mean_per_sample(each, mask)


def _mean_per_sample(each: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Average `each` (samples, ...) inside samples; return (mean, count), both (samples,)."""
    keep = torch.ones_like(each) if mask is None else mask.to(each)
    axes = tuple(range(1, each.dim()))
    count = keep.sum(axes) if axes else keep
    total = (each * keep).sum(axes) if axes else each * keep
    return total / count.clamp(min=1), count


@dataclass(frozen=True)
class Evaluation:
    """Accuracy (share of predictions that hit) and cross-entropy (nats per prediction) on labelled data.

    `kl` is the divergence from reference logits in nats per prediction, where those were given.
    """

    accuracy: Mean
    cross_entropy: Mean
    predictions: int
    kl: Mean | None = None

    @property
    def perplexity(self) -> float:
        """exp(cross-entropy): among how many equally likely classes the model hesitates."""
        return math.exp(min(self.cross_entropy.value, 700.0))

    def __str__(self) -> str:
        return (
            f"accuracy {100 * self.accuracy.value:.2f} % ± {100 * self.accuracy.stderr:.2f}, "
            f"cross-entropy {self.cross_entropy.value:.4f} ± {self.cross_entropy.stderr:.4f} nats "
            f"({self.predictions} predictions)"
        )


def logits(model: nn.Module, batches: Iterable[Any], forward: Forward | None = None) -> list[Tensor]:
    """Return the logits of every batch, to compare other models with."""
    with inference(model):
        return [predict(model, batch, forward) for batch in batches]


class Divergence:
    """KL from a float model in nats per prediction, sample by sample, always on the same samples.

    A net that is sure of nearly all its answers has nearly all of its divergence in a few samples, so that the mean
    over a few hundred of them is mostly luck. Softened predictions (see `kl_per_sample`) hear every sample: by them
    changed models are compared where the divergence itself is too noisy.

    Args:
        model: the float model.
        batches: the samples.
        forward: how to call models.

    Attributes:
        weights: (n,) predictions in each sample.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Any], forward: Forward | None = None) -> None:
        self._batches, self._forward = batches, forward
        self._reference = logits(model, batches, forward)
        pairs = zip(batches, self._reference, strict=True)
        counts = [kl_per_sample(found, found, prediction_mask(batch, found))[1] for batch, found in pairs]
        self.weights: Floats = torch.cat(counts).double().cpu().numpy()

    def of(self, model: nn.Module, *temperatures: float) -> Floats:
        """Return the divergence of `model` on each sample at each temperature, (temperatures, n)."""
        found = logits(model, self._batches, self._forward)
        return np.stack([self._between(found, heat) for heat in temperatures])

    def steady(self, model: nn.Module) -> tuple[float, Floats]:
        """Return the least temperature at which the divergence of `model` is known to 5 % of itself (STEADY).

        Beside it the divergence at 1 and at that temperature, (2, n).
        """
        every = self.of(model, *TEMPERATURES)
        steady = (place for place, values in enumerate(every) if self._is_steady(values))
        place = next(steady, len(TEMPERATURES) - 1)
        return TEMPERATURES[place], every[[0, place]]

    def _is_steady(self, values: Floats) -> bool:
        mean = WeightedMean()
        mean.add(torch.from_numpy(values), torch.from_numpy(self.weights))
        return mean.result().stderr <= STEADY * mean.result().value

    def _between(self, found: Sequence[Tensor], heat: float) -> Floats:
        triples = zip(self._batches, self._reference, found, strict=True)
        values = [kl_per_sample(wanted, own, prediction_mask(batch, wanted), heat)[0] for batch, wanted, own in triples]
        return np.asarray(torch.cat(values).double().cpu().numpy(), np.float64)


def evaluate(
    model: nn.Module,
    batches: Iterable[Any],
    forward: Forward | None = None,
    reference: Sequence[Tensor] | None = None,
) -> Evaluation:
    """Measure accuracy and cross-entropy of `model` on labelled `batches`; labels of −100 do not count.

    Args:
        model: evaluated in eval mode, left as it was.
        batches: labelled batches.
        forward: how to call the model.
        reference: logits of another model on the same batches (see `logits`), to measure the divergence from.

    Raises:
        DataError: when there is no batch, or a batch has no targets.
    """
    hits, losses, kl, predictions = WeightedMean(), WeightedMean(), WeightedMean(), 0
    batches = list(batches)
    if not batches:
        raise DataError("there is no batch to evaluate on; expected at least one (inputs, targets) pair")
    with inference(model), task("evaluating", len(batches)) as advance:
        for index, batch in enumerate(batches):
            found = predict(model, batch, forward).float()
            targets, mask = _scored(batch, found, model)
            if reference is not None:
                kl.add(*kl_per_sample(reference[index], found, prediction_mask(batch, found)))
            hits.add(*_mean_per_sample((found.argmax(-1) == targets).float(), mask))
            losses.add(*_cross_entropy(found, targets, mask))
            predictions += int(mask.sum())
            advance()
    return Evaluation(hits.result(), losses.result(), predictions, None if reference is None else kl.result())


def accuracy_per_sample(logits: Tensor, batch: Any, model: nn.Module) -> Tensor:
    """Return the share of right predictions of each sample of `batch`, (samples,); labels of −100 do not count.

    Args:
        logits: (samples, ..., classes), what `model` gives on the batch.
        batch: with targets.
        model: says how its labels are aligned.

    Raises:
        DataError: the batch has no targets, or they do not fit.

    >>> batch = (torch.zeros(2, 3), torch.tensor([1, 0]))
    >>> accuracy_per_sample(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), batch, nn.Identity()).tolist()
    [1.0, 0.0]
    """
    targets, mask = _scored(batch, logits, model)
    return _mean_per_sample((logits.argmax(-1) == targets).float(), mask)[0]


def cross_entropy_per_sample(logits: Tensor, batch: Any, model: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy in nats, averaged inside each sample, and the predictions per sample, both (samples,).

    Arguments and errors as in `accuracy_per_sample`.

    >>> batch = (torch.zeros(2, 3), torch.tensor([1, 0]))
    >>> cross_entropy_per_sample(torch.zeros(2, 2), batch, nn.Identity())[0].tolist()
    [0.6931471824645996, 0.6931471824645996]
    """
    return _cross_entropy(logits.float(), *_scored(batch, logits, model))


def _cross_entropy(logits: Tensor, targets: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    loss = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=-100, reduction="none")
    return _mean_per_sample(loss.view(targets.shape), mask)


def _scored(batch: Any, logits: Tensor, model: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the targets, and which of them count."""
    targets = targets_of(batch, model)
    if targets is None:
        raise DataError("cannot evaluate without targets: expected (inputs, targets) pairs or 'labels'")
    if logits.shape[:-1] != targets.shape:
        raise DataError(
            f"targets of shape {tuple(targets.shape)} do not fit logits of shape {tuple(logits.shape)}; "
            "expected one integer class per prediction"
        )
    scored, classes = targets != -100, logits.shape[-1]
    if bool((wrong := scored & ((targets < 0) | (targets >= classes))).any()):
        raise DataError(
            f"target {int(targets[wrong][0])} is none of the model's {classes} classes; evaluate on data that it is for"
        )
    mask = prediction_mask(batch, logits)
    return targets, scored if mask is None else scored & mask


def divergence(reference: nn.Module, model: nn.Module, batches: Iterable[Any], forward: Forward | None = None) -> Mean:
    """Measure the mean KL divergence of `model` from `reference` in nats per prediction; needs no labels."""
    mean = WeightedMean()
    with inference(reference), inference(model):
        for batch in batches:
            wanted = predict(reference, batch, forward)
            mean.add(*kl_per_sample(wanted, predict(model, batch, forward), prediction_mask(batch, wanted)))
    return mean.result()
