"""What does a plan do to every single sample?

Values per sample, so that two plans can be compared on the same samples: the difference of two means is then known far
better than either mean.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from geoquant.arrays import Floats
from geoquant.errors import DataError, PlanError
from geoquant.evaluation import accuracy_per_sample
from geoquant.models import Forward, batch_size, inference, predict
from geoquant.plan import Plan
from geoquant.quantize import quantize

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
