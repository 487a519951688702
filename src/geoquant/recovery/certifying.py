"""May training stop, because what it has reached is certain to be good enough on data of this kind?

At each look the model is finished as it would be deployed and compared with the float model on samples that take part
in nothing else; where an anytime-valid bound on the drop is low enough, training stops with that very state. The states
that are looked at follow from the training data alone: these samples decide only when to stop, so each look's bound is
valid, and all hold together because the looks, whose number is known beforehand, share out the error probability.
Where the answer stops: at the certificate's assumption, that the samples are independent draws of the data in question.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from geoquant.bounds import Certificate
from geoquant.models import Forward
from geoquant.recovery.latents import Latents
from geoquant.recovery.settings import RecoveryError
from geoquant.search.certifying import Certifier
from geoquant.search.samples import Metric
from geoquant.storage import Json


@dataclass(frozen=True)
class Certify:
    """What an early stop has to certify.

    Attributes:
        batches: samples that take part in nothing else: not in training, validation or calibration.
        drop: largest drop of the metric that is allowed, as a share: 0.01 is one point of accuracy.
        confidence: of the certificate, all looks together.
        every: steps between looks; an epoch when None. More looks make each of them harder to pass.
        metric: "accuracy", or a function of (logits, batch) that scores each sample between 0 and 1.

    Raises:
        RecoveryError: a number is out of its range.

    >>> Certify([], drop=1.5)
    Traceback (most recent call last):
    ...
    geoquant.recovery.settings.RecoveryError: drop=1.5, confidence=0.95, every=None make no sense; ...
    """

    batches: Sequence[Any]
    drop: float
    confidence: float = 0.95
    every: int | None = None
    metric: Metric = "accuracy"

    def __post_init__(self) -> None:
        if not (0 < self.drop <= 1 and 0 < self.confidence < 1 and (self.every is None or self.every >= 1)):
            raise RecoveryError(
                f"drop={self.drop}, confidence={self.confidence}, every={self.every} make no sense; a drop of one "
                "point is 0.01"
            )

    def looks(self, total: int, per_epoch: int) -> int:
        """Return how many looks a run of `total` steps has, the one at its end among them.

        >>> Certify([], drop=0.01, every=10).looks(30, 100), Certify([], drop=0.01).looks(30, 100)
        (3, 1)
        """
        return (total - 1) // (self.every or per_epoch) + 1

    def identity(self) -> Json:
        """Return what must be equal for a run to go on: the looks that were taken count."""
        return {"drop": self.drop, "confidence": self.confidence, "every": self.every, "batches": len(self.batches)}


class Witness:
    """Puts the states of one run to the certificate.

    Args:
        wanted: what has to be certified.
        reference: the float model.
        layout: a model of the same layout, float or quantized; a copy of it is deployed.
        total: steps of the run.
        per_epoch: steps of an epoch.
        forward: how to call models.

    Attributes:
        certificate: of the last look; its confidence is that of all looks together.
    """

    def __init__(
        self,
        wanted: Certify,
        reference: nn.Module,
        layout: nn.Module,
        total: int,
        per_epoch: int,
        forward: Forward | None,
    ) -> None:
        self.wanted = wanted
        self.certificate: Certificate | None = None
        self._every = wanted.every or per_epoch
        self._alpha = (1 - wanted.confidence) / wanted.looks(total, per_epoch)
        self._certifier = Certifier(reference, wanted.batches, wanted.metric, forward)
        self._deployed = copy.deepcopy(layout)

    @property
    def certified(self) -> bool:
        """Whether the last look was passed."""
        return self.certificate is not None and self.certificate.upper_bound <= self.wanted.drop

    def due(self, done: int) -> bool:
        """Whether there is a look after `done` steps."""
        return done % self._every == 0

    def look(self, latents: Latents) -> bool:
        """Deploy the model as it is now; return whether it is certified."""
        latents.hand_over_(self._deployed)
        found = self._certifier.certify(self._deployed, self.wanted.drop, 1 - self._alpha)
        self.certificate = replace(found, confidence=self.wanted.confidence)
        return self.certified

    def document(self) -> Json | None:
        """Return what a checkpoint needs."""
        return None if self.certificate is None else asdict(self.certificate)

    def load_(self, document: Json | None) -> None:
        """Go on from what `document` returned."""
        self.certificate = None if document is None else Certificate(**document)
