"""How much worse can the quantized model be on unseen data, with stated confidence?

Held-out samples are run through both models; per sample the accuracy or the clipped loss changes by some amount; a
distribution-free bound on the mean of bounded numbers (see `mean_bounds`) gives the certificate. Pairing matters: the
two models agree on most samples, so the change varies far less than either accuracy.

Where the answer stops: at its assumption, which is part of every certificate. The samples must be independent draws of
the data in question, and must never have taken part in selecting the plan: not in calibration, allocation, tuning, nor
in choosing among certificates. Looking again after more samples needs `CertificateSequence`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from geoquant.arrays import Floats
from geoquant.bounds.mean_bounds import anytime_upper_mean_bound, upper_mean_bound
from geoquant.errors import DataError, GeoquantError

ASSUMPTION = "independent samples of the data in question, which never selected the plan"


@dataclass(frozen=True)
class Certificate:
    """An upper confidence bound on how much worse the quantized model is.

    Attributes:
        quantity: "accuracy drop" (share of samples) or "loss increase" (in the loss's unit, each sample's change
            clipped to ±cap before averaging).
        upper_bound: the mean of the quantity over the data is at most this, with the stated confidence.
        observed: its mean over the samples.
        samples: how many.
        confidence: 1 − α.
        cap: largest change that one sample counts for.
        method: the bound's name; "anytime betting" holds at all looks at once.
        assumption: what must be true of the samples.
    """

    quantity: str
    upper_bound: float
    observed: float
    samples: int
    confidence: float
    cap: float
    method: str
    assumption: str = ASSUMPTION

    def __str__(self) -> str:
        return (
            f"{self.quantity} at most {self.upper_bound:.6g} with confidence {self.confidence:g} (observed "
            f"{self.observed:.6g} on {self.samples} samples; {self.method}; assumes {self.assumption})"
        )


def certify_accuracy(
    correct: ArrayLike, quantized_correct: ArrayLike, *, confidence: float = 0.95, method: str = "betting"
) -> Certificate:
    """Certify the drop of accuracy from paired samples.

    Args:
        correct: (n,) bool or 0/1: was the float model right on each sample?
        quantized_correct: (n,) the same of the quantized model, on the same samples in the same order.
        confidence: 1 − α.
        method: see `upper_mean_bound`.

    Raises:
        DataError: samples that are not paired, too few, or not 0/1.
        GeoquantError: an unknown method, or a confidence outside (0, 1).

    >>> right = np.ones(2000); worse = right.copy(); worse[::200] = 0     # ten samples lost
    >>> certificate = certify_accuracy(right, worse)
    >>> certificate.observed, round(certificate.upper_bound, 4)
    (0.005, 0.0108)
    """
    return _certificate("accuracy drop", accuracy_changes(correct, quantized_correct), 1.0, confidence, method)


def certify_loss(
    losses: ArrayLike,
    quantized_losses: ArrayLike,
    cap: float,
    *,
    confidence: float = 0.95,
    method: str = "betting",
) -> Certificate:
    """Certify the increase of the mean loss, each sample's change clipped to ±cap, from paired samples.

    Args:
        losses: (n,) loss of the float model on each sample.
        quantized_losses: (n,) the same of the quantized model, on the same samples in the same order.
        cap: > 0, in the loss's unit. A larger cap clips less and bounds less tightly; choose it before looking.
        confidence: 1 − α.
        method: see `upper_mean_bound`.

    Raises:
        DataError: samples that are not paired, too few, or not finite; a cap of 0 or less.
        GeoquantError: an unknown method, or a confidence outside (0, 1).

    >>> print(certify_loss(np.zeros(500), np.full(500, 0.01), 1.0))
    loss increase at most 0.0181... with confidence 0.95 (observed 0.01 on 500 samples; betting; assumes ...)
    """
    return _certificate("loss increase", loss_changes(losses, quantized_losses, cap), cap, confidence, method)


def accuracy_changes(correct: ArrayLike, quantized_correct: ArrayLike) -> Floats:
    """Return +1 where only the float model is right, −1 where only the quantized one is, else 0; float64 (n,)."""
    before, after = _paired(correct, quantized_correct)
    if not bool((np.isin(before, (0, 1)) & np.isin(after, (0, 1))).all()):
        raise DataError("correctness is 0 or 1 per sample")
    return before - after


def loss_changes(losses: ArrayLike, quantized_losses: ArrayLike, cap: float) -> Floats:
    """Return the change of each sample's loss, clipped to ±cap; float64 (n,)."""
    if not (math.isfinite(cap) and cap > 0):
        raise DataError(f"the cap must be a finite number above 0, got {cap}")
    before, after = _paired(losses, quantized_losses)
    return np.clip(after - before, -cap, cap)


def _paired(first: ArrayLike, second: ArrayLike) -> tuple[Floats, Floats]:
    before, after = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if before.ndim != 1 or before.shape != after.shape:
        raise DataError(f"one value per sample and model is needed, got shapes {before.shape} and {after.shape}")
    if not bool(np.isfinite(before).all() and np.isfinite(after).all()):
        raise DataError("the samples hold NaN or Inf")
    return before, after


def _certificate(quantity: str, changes: Floats, cap: float, confidence: float, method: str) -> Certificate:
    _check_confidence(confidence)
    bound = float(upper_mean_bound(_unit(changes, cap), 1 - confidence, method))
    return Certificate(quantity, _from_unit(bound, cap), float(changes.mean()), len(changes), confidence, cap, method)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise GeoquantError(f"the confidence lies between 0 and 1, got {confidence}")


def _unit(changes: Floats, cap: float) -> Floats:
    return np.clip((changes + cap) / (2 * cap), 0.0, 1.0)


def _from_unit(bound: float, cap: float) -> float:
    return 2 * cap * bound - cap


@dataclass(frozen=True)
class CertificateSequence:
    """Certificates after each look at more samples, all true at once with the stated confidence.

    Stopping at whichever look one likes is allowed; the plan must still not depend on the samples. Start with
    `CertificateSequence("accuracy drop")` or `("loss increase", cap)`; `after` returns a longer sequence.

    Attributes:
        quantity: as in `Certificate`.
        cap: as in `Certificate`.
        confidence: 1 − α, for the whole sequence.
        changes: (n,) the samples' changes so far.
        best: least upper bound of all looks so far, which is valid too.

    >>> sequence = CertificateSequence("accuracy drop")
    >>> for _ in range(3):
    ...     sequence = sequence.after(accuracy_changes(np.ones(500), np.ones(500)))
    >>> sequence.certificate.samples, round(sequence.certificate.upper_bound, 4)
    (1500, 0.0038)
    """

    quantity: str
    cap: float = 1.0
    confidence: float = 0.95
    changes: tuple[float, ...] = ()
    best: float = math.inf

    def __post_init__(self) -> None:
        _check_confidence(self.confidence)

    def after(self, changes: ArrayLike) -> CertificateSequence:
        """Take in further samples (see `accuracy_changes`, `loss_changes`) and look."""
        more = np.asarray(changes, dtype=np.float64)
        if more.ndim != 1 or not bool((np.abs(more) <= self.cap).all()):
            raise DataError(f"changes are one number per sample within ±{self.cap}")
        values = (*self.changes, *more.tolist())
        bound = float(anytime_upper_mean_bound(_unit(np.asarray(values), self.cap), 1 - self.confidence))
        return replace(self, changes=values, best=min(self.best, _from_unit(bound, self.cap)))

    @property
    def certificate(self) -> Certificate:
        """What is certified after the last look."""
        if not self.changes:
            raise DataError("no samples were taken in yet")
        observed = math.fsum(self.changes) / len(self.changes)
        return Certificate(
            self.quantity, self.best, observed, len(self.changes), self.confidence, self.cap, "anytime betting"
        )
