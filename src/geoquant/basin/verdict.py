"""Which of four verdicts follows from what was measured, and why?

`ptq`: plain rounding stays in the basin. `better-rounding`: it leaves, second-order rounding with corrected norms does
not. `qat`: both leave, and a short training already brings the loss most of the way back. `infeasible`: it does not,
so a usual training is not expected to either. The first two are measurements up to the noise of their samples; the
last two are a prediction, whose threshold comes from the cases that `Thresholds` names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from geoquant.evaluation import Mean

Verdict = Literal["ptq", "better-rounding", "qat", "infeasible"]
VERDICTS: tuple[Verdict, ...] = ("ptq", "better-rounding", "qat", "infeasible")


@dataclass(frozen=True)
class Evidence:
    """The measured numbers that a verdict follows from.

    Attributes:
        tolerance: rise of the loss that is allowed, nats per prediction.
        nearest: rise after nearest rounding.
        rounded: rise after descent with corrected norms; None when nearest rounding was clearly good enough.
        trained: rise left after a short training of codes, scales and norms; None when it was not tried.
        leaving: share of the layers that leave the basin when they alone are rounded.
        width: the basin's radius along the displacement, in grid steps.
        random_width: the same along random directions of the grid cell, mean.
    """

    tolerance: float
    nearest: Mean
    rounded: Mean | None
    trained: Mean | None
    leaving: float
    width: float
    random_width: float


@dataclass(frozen=True)
class Thresholds:
    """Where verdicts change, in multiples of the tolerance.

    The first two compare like with like, so they are 1. The third lies between the pilot cases of
    `benchmarks/basin_prediction.py` (two small nets) that two epochs of training brought back (at most 1.1 left) and
    those that it did not (3.2 and more left); its ``--fit`` finds all three from more cases.

    Attributes:
        nearest: largest rise after nearest rounding for `ptq`.
        rounded: largest rise after descent with corrected norms for `better-rounding`.
        trained: largest rise left after the short training (or before it, where that is less) for `qat`.
    """

    nearest: float = 1.0
    rounded: float = 1.0
    trained: float = 2.0


THRESHOLDS = Thresholds()


def decide(evidence: Evidence, thresholds: Thresholds = THRESHOLDS) -> tuple[Verdict, tuple[str, ...]]:
    """Return the verdict and a sentence for each comparison that led to it.

    >>> sure = lambda value: Mean(value, 0.0, 100)
    >>> decide(Evidence(0.05, sure(2.0), sure(0.3), sure(0.1), 0.5, 0.1, 0.2))[0]
    'qat'
    """
    reasons = [_compared("nearest rounding raises", evidence.nearest, thresholds.nearest, evidence)]
    if _within(evidence.nearest, thresholds.nearest, evidence):
        return "ptq", tuple(reasons)
    left, text = evidence.nearest, "untried, better rounding and training leave at most"
    if evidence.rounded is not None:
        reasons.append(_compared("descent with corrected norms raises", evidence.rounded, thresholds.rounded, evidence))
        if _within(evidence.rounded, thresholds.rounded, evidence):
            return "better-rounding", tuple(reasons)
        left, text = evidence.rounded, "untrained, the pipeline leaves"
    if evidence.trained is not None and evidence.trained.value < left.value:
        left, text = evidence.trained, "a short training leaves"
    reasons.append(_compared(text, left, thresholds.trained, evidence))
    return ("qat" if _within(left, thresholds.trained, evidence) else "infeasible"), tuple(reasons)


def _within(rise: Mean, factor: float, evidence: Evidence) -> bool:
    return rise.value <= factor * evidence.tolerance


def _compared(what: str, rise: Mean, factor: float, evidence: Evidence) -> str:
    """Say what was compared with which limit, and whether the samples tell them apart."""
    limit = factor * evidence.tolerance
    noun = "the loss by" if what.endswith("raises") else "a rise of"
    close = ", a close call" if abs(rise.value - limit) <= 2 * rise.stderr else ""
    side = "within" if rise.value <= limit else "beyond"
    return f"{what} {noun} {rise.value:.3g} ± {rise.stderr:.2g}, {side} {limit:.3g}{close}"
