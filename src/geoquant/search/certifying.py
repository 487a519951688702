"""Is a quantized model's drop on unseen samples small enough, and how few samples suffice to say so?

The samples are read until an anytime-valid bound (`CertificateSequence`) is low enough or there are no more. Several
models may be put to the same samples if none of them was chosen by these samples, and if the error probability is
shared out among the attempts beforehand; that is the caller's part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from geoquant.arrays import Floats
from geoquant.bounds import Certificate, CertificateSequence
from geoquant.models import Forward
from geoquant.progress import task
from geoquant.search.samples import Metric, scores

GROWTH = 1.5
"""The certificate looks again when it has so many times the samples."""


class Certifier:
    """Compares models with the float model, sample by sample, on data that took no part in making them.

    Args:
        model: the float model; its scores are kept, so that it runs once per sample.
        batches: the samples.
        metric: "accuracy", or a function of (logits, batch) that scores each sample between 0 and 1.
        forward: how to call models.
    """

    def __init__(
        self, model: nn.Module, batches: Sequence[Any], metric: Metric = "accuracy", forward: Forward | None = None
    ) -> None:
        self._batches, self._metric, self._forward = batches, metric, forward
        self._float = scores(model, batches, metric, forward)
        self._before: list[Floats] = []
        self._name = "accuracy drop" if metric == "accuracy" else "drop of the metric"

    def certify(self, quantized: nn.Module, drop: float, confidence: float) -> Certificate:
        """Take in samples until the bound is at most `drop`, or there are no more; return the last certificate.

        Raises:
            DataError, PlanError: see `geoquant.search.samples.scores`.
        """
        sequence = CertificateSequence(self._name, confidence=confidence)
        waiting: list[Floats] = []
        after = scores(quantized, self._batches, self._metric, self._forward)
        with task("certifying", len(self._batches)) as advance:
            for index, values in enumerate(after):
                waiting.append(self._of_float(index) - values)
                held = len(sequence.changes) + sum(map(len, waiting))
                if index + 1 == len(self._batches) or held >= GROWTH * len(sequence.changes):
                    sequence, waiting = sequence.after(np.concatenate(waiting)), []
                    if sequence.certificate.upper_bound <= drop:
                        break
                advance()
        return sequence.certificate

    def _of_float(self, index: int) -> Floats:
        while len(self._before) <= index:
            self._before.append(next(self._float))
        return self._before[index]
