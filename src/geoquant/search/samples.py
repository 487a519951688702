"""What does a plan do to every single sample: its score, its divergence from the float model?

Values per sample, so that two plans can be compared on the same samples: the difference of two means is then known far
better than either mean.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from geoquant.errors import DataError, PlanError
from geoquant.evaluation import accuracy_per_sample, kl_per_sample, logits
from geoquant.models import Forward, batch_size, inference, predict, prediction_mask
from geoquant.plan import Plan
from geoquant.quantize import quantize

Floats = NDArray[np.float64]
Deploy = Callable[[Plan], nn.Module]
"""From a plan to a quantized model of its own, through the pipeline that will deploy it."""

Metric = Literal["accuracy"] | Callable[[Tensor, Any], Tensor]
"""Accuracy, or ``metric(logits, batch)``: a score of each sample, (samples,), between 0 and 1, higher is better."""


def pipeline(
    model: nn.Module, calibration: Sequence[Any] | None = None, forward: Forward | None = None, **settings: Any
) -> Deploy:
    """Return the deployment by `geoquant.quantize.quantize` with these `settings`."""
    return lambda plan: quantize(model, plan, calibration, forward=forward, **settings)


def scores(
    model: nn.Module, batches: Sequence[Any], metric: Metric, forward: Forward | None = None
) -> Iterator[Floats]:
    """Yield the score of each sample, batch by batch.

    Raises:
        DataError: accuracy is asked of batches without targets.
        PlanError: the caller's metric gives something else than a score between 0 and 1 per sample.
    """
    for batch in batches:
        with inference(model):
            found = predict(model, batch, forward).float()
            values = accuracy_per_sample(found, batch, model) if metric == "accuracy" else metric(found, batch)
        if not isinstance(values, Tensor) or tuple(values.shape) != (batch_size(batch),):
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise PlanError(f"the metric gave {shape} for {batch_size(batch)} samples; one score each is needed")
        scored = values.detach().double().cpu().numpy()
        if not bool(((scored >= 0) & (scored <= 1)).all()):
            raise PlanError("the metric gave a score outside 0 to 1; scale it, so that a certificate can be given")
        yield scored


class Divergence:
    """KL from the float model in nats per prediction, sample by sample, always on the same samples.

    Args:
        model: the float model.
        batches: the samples.
        forward: how to call models.
        temperature: of the predictions (see `kl_per_sample`).

    Attributes:
        weights: (n,) predictions in each sample.
    """

    def __init__(
        self, model: nn.Module, batches: Sequence[Any], forward: Forward | None = None, temperature: float = 1.0
    ) -> None:
        self._batches, self._forward, self._temperature = batches, forward, temperature
        self._reference = logits(model, batches, forward)
        pairs = zip(batches, self._reference, strict=True)
        counts = [kl_per_sample(found, found, prediction_mask(batch, found))[1] for batch, found in pairs]
        self.weights: Floats = torch.cat(counts).double().cpu().numpy()

    def of(self, model: nn.Module) -> Floats:
        """Return the divergence of `model` on each sample, (n,)."""
        values = []
        for batch, wanted, found in zip(
            self._batches, self._reference, logits(model, self._batches, self._forward), strict=True
        ):
            values.append(kl_per_sample(wanted, found, prediction_mask(batch, wanted), self._temperature)[0])
        return np.asarray(torch.cat(values).double().cpu().numpy(), np.float64)


def check_disjoint(first: Sequence[Any], second: Sequence[Any]) -> None:
    """Refuse data that shares more than one sample in a hundred: data sets hold a few duplicates of their own."""
    seen = {key for batch in first for key in _keys(batch)}
    keys = [key for batch in second for key in _keys(batch)]
    shared = sum(key in seen for key in keys)
    if shared > 0.01 * len(keys):
        raise DataError(
            f"{shared} of {len(keys)} samples for the certificate took part in the choice; certify on others"
        )


def _keys(batch: Any) -> list[bytes]:
    inputs = batch[0] if isinstance(batch, tuple | list) else batch
    if isinstance(inputs, dict):
        inputs = next(value for value in inputs.values() if isinstance(value, Tensor))
    inputs = inputs[0] if isinstance(inputs, tuple | list) else inputs
    rows = inputs.detach().cpu().contiguous()
    return [hashlib.sha256(row.reshape(-1).view(torch.uint8).numpy().tobytes()).digest() for row in rows]
