"""How well is a number known? Values with their evidence, and running means that know their spread.

Every measure of this package answers with an `Estimate`: exact up to rounding, or a mean with a standard
error, or the end of an iteration with the numerical error it left. The standard error speaks of the random
draws (probes, samples) only; which data was looked at is the caller's choice and not part of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from geoquant.errors import GeoquantError


@dataclass(frozen=True)
class Estimate:
    """A value, how well it is known, and what it cost.

    Attributes:
        value: the number, in the unit of the quantity; `inf` where the quantity is unbounded.
        stderr: standard error of the mean over the draws; 0 when nothing was drawn.
        exact: True for a closed form or a direct factorisation (rounding of the arithmetic aside).
        samples: probes or data points averaged over; 0 when nothing was drawn.
        cost: forward-equivalents spent (one float forward over the batches that were given).
        method: name of the method.
        residual: what a converged iteration may have left, in units of the value; 0 otherwise.
        note: what a reader must know besides, such as the rank of a singular matrix.

    >>> print(Estimate(3.0, stderr=0.25, samples=8, method="hutchinson"))
    3 ± 0.25 (hutchinson, 8 samples)
    >>> print(Estimate.known(0.25, "log-sum-exp"))
    0.25 (exact: log-sum-exp)
    """

    value: float
    stderr: float = 0.0
    exact: bool = False
    samples: int = 0
    cost: float = 0.0
    method: str = ""
    residual: float = 0.0
    note: str = ""

    def __post_init__(self) -> None:
        if self.exact and (self.stderr != 0 or self.residual != 0):
            raise GeoquantError(f"an exact value has no error, got stderr {self.stderr} and residual {self.residual}")

    @staticmethod
    def known(value: float, method: str, *, cost: float = 0.0, note: str = "") -> Estimate:
        """Return an exact value."""
        return Estimate(value, exact=True, method=method, cost=cost, note=note)

    def __str__(self) -> str:
        note = f"; {self.note}" if self.note else ""
        if self.exact:
            return f"{self.value:.6g} (exact: {self.method}{note})"
        if self.samples == 0:
            return f"{self.value:.6g} ± {self.residual:.2g} left ({self.method}{note})"
        return f"{self.value:.6g} ± {self.stderr:.3g} ({self.method}, {self.samples} samples{note})"


class RunningMean:
    """Mean and standard error of vectors that come one by one (Welford's update, float64).

    >>> mean = RunningMean()
    >>> mean.add(torch.tensor([1.0, 5.0])); mean.add(torch.tensor([3.0, 5.0]))
    >>> mean.mean.tolist(), mean.stderr.tolist()
    ([2.0, 5.0], [1.0, 0.0])
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean = torch.zeros(())
        self._squares = torch.zeros(())

    def add(self, values: Tensor) -> None:
        """Take in one more draw of the vector."""
        draw = values.detach().double().cpu()
        if self.count == 0:
            self._mean, self._squares = torch.zeros_like(draw), torch.zeros_like(draw)
        self.count += 1
        step = draw - self._mean
        self._mean = self._mean + step / self.count
        self._squares = self._squares + step * (draw - self._mean)

    @property
    def mean(self) -> Tensor:
        """Mean of the draws, float64."""
        return self._mean

    @property
    def stderr(self) -> Tensor:
        """Standard error of the mean; infinite before the second draw."""
        if self.count < 2:
            return torch.full_like(self._mean, math.inf)
        return (self._squares / (self.count * (self.count - 1))).sqrt()

    def settled(self, relative: float) -> bool:
        """Say whether every standard error is at most `relative` times its mean's size."""
        return bool((self.stderr <= relative * self._mean.abs()).all())
