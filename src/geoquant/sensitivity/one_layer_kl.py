"""What does rounding one layer alone do to the predictions? Damage as KL divergence in nats.

Measured, not modelled: each (site, grid) is set in turn, everything after the site is run again
(`geoquant.models.Replay`), and KL(float ‖ changed) is averaged over the calibration set. It sees walls
that no Taylor expansion sees; it does not see how two changed layers add up.
(ModelOpt's `kl_div` score is this quantity.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from geoquant.evaluation import WeightedMean, kl_per_sample
from geoquant.models import Replay, inference, prediction_mask, temporarily
from geoquant.progress import task
from geoquant.sensitivity.protocol import PREDICTORS, DamageTable, Subject, table


class OneLayerKL:
    """KL divergence to the float model with one site rounded to nearest, in nats per prediction."""

    name = "one_layer_kl"
    unit = "nats per prediction"
    by_site = True
    fixed_cost = 1.0  # the float model's own forward

    def estimated_cost(self, subject: Subject) -> float:
        """Return 1 + choices × the share of the network behind each site, summed over sites."""
        with inference(subject.model), Replay(subject.model, subject.batches[0], subject.forward) as replay:
            return 1 + len(subject.grids) * sum(replay.fraction(site) for site in subject.sites)

    def measure(self, subject: Subject) -> DamageTable:
        """Run every (site, grid) on every batch, batch by batch so that memory stays that of one batch."""
        means = [[WeightedMean() for _ in subject.grids] for _ in subject.sites]
        shares: list[float] = []
        with inference(subject.model), task("one-layer KL", len(subject.batches) * len(subject.sites)) as advance:
            for batch in subject.batches:
                with Replay(subject.model, batch, subject.forward) as replay:
                    mask = prediction_mask(batch, replay.reference)
                    shares.append(sum(replay.fraction(site) for site in subject.sites))
                    for index in range(len(subject.sites)):
                        _measure_site(subject, index, replay, mask, means[index])
                        advance()
        results = [[mean.result() for mean in row] for row in means]
        damage = np.array([[mean.value for mean in row] for row in results])
        stderr = np.array([[mean.stderr for mean in row] for row in results])
        cost = 1 + len(subject.grids) * float(np.mean(shares))
        return table(self.name, self.unit, subject, damage, stderr, cost, results[0][0].samples)


def _measure_site(
    subject: Subject, index: int, replay: Replay, mask: Tensor | None, means: Sequence[WeightedMean]
) -> None:
    """Add one batch's KL at one site to the running mean of each grid."""
    site = subject.sites[index]
    for rounded, mean in zip(subject.quantized[index], means, strict=True):
        with temporarily(subject.model, site, site.restore(rounded.dequantize())):
            mean.add(*kl_per_sample(replay.reference, replay.run(site), mask))


PREDICTORS.register(OneLayerKL.name, OneLayerKL())
