"""What is minimised while a quantized model is trained?

The divergence from the float model's answers (distillation; Hinton et al., arXiv:1503.02531), cross-entropy with the
labels, a mixture of both, or a function of the caller's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geoquant.errors import DataError
from geoquant.evaluation import kl_per_sample
from geoquant.models import Forward, inference, predict, prediction_mask, targets_of

Loss = Callable[[Tensor, Any], Tensor]


class Objective:
    """A loss of a batch, in nats per prediction where it is not the caller's own.

    Args:
        loss: ``loss(logits, batch)``, instead of cross-entropy.
        teacher: the float model, whose answers are learned.
        labels: share of `loss` (or of cross-entropy) beside the teacher.
        temperature: T of the distillation; its divergence counts T² times.
        forward: how to call models.

    >>> objective = Objective()
    >>> objective(nn.Identity(), (torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))).item()
    0.6931...
    """

    def __init__(
        self,
        loss: Loss | None = None,
        teacher: nn.Module | None = None,
        labels: float = 0.0,
        temperature: float = 1.0,
        forward: Forward | None = None,
    ) -> None:
        self._loss, self._teacher, self._forward = loss, teacher, forward
        self._labels, self._temperature = labels if teacher is not None else 1.0, temperature

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the mean loss of `model` on `batch`, a scalar.

        Raises:
            DataError: labels are wanted and the batch has none.
        """
        logits = predict(model, batch, self._forward)
        terms = []
        if self._labels > 0:
            terms.append(self._labels * self._labelled(model, logits, batch))
        if self._labels < 1 and self._teacher is not None:
            terms.append((1 - self._labels) * self._distilled(self._teacher, logits, batch))
        return torch.stack(terms).sum()

    def _labelled(self, model: nn.Module, logits: Tensor, batch: Any) -> Tensor:
        if self._loss is not None:
            return self._loss(logits, batch)
        targets = targets_of(batch, plain(model))
        if targets is None:
            raise DataError(
                "a batch has no targets to learn from; give (inputs, targets) pairs, or the float model as teacher="
            )
        return F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten())

    def _distilled(self, teacher: nn.Module, logits: Tensor, batch: Any) -> Tensor:
        with inference(teacher):
            wanted = predict(teacher, batch, self._forward)
        warm = self._temperature
        each, count = kl_per_sample(wanted.clone() / warm, logits / warm, prediction_mask(batch, logits))
        return (each * count).sum() / count.sum() * warm**2


def plain(model: nn.Module) -> nn.Module:
    """Return the model inside a `DistributedDataParallel`, and any other as it is."""
    inner = getattr(model, "module", None)
    return inner if isinstance(inner, nn.Module) and type(model).__name__ == "DistributedDataParallel" else model
