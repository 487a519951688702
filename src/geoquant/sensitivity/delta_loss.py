"""DeltaLoss: Σ|g ⊙ (W − W_q)| with the gradient where all layers are quantized.

The score of AutoRound's AutoScheme: put every site on one grid, take the loss's gradient there, and add the absolute
first-order changes of all weights; one pass per grid. It is the only gradient score that looks from the quantized
point. Absolute values keep errors from cancelling, which real ones do. Without labels the loss is the divergence
from the float model's predictions; with them, theirs.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from geoquant.arrays import Floats
from geoquant.geometry import Objective
from geoquant.geometry.objective import Scored
from geoquant.models import inference, predict, targets_of, temporarily
from geoquant.progress import task
from geoquant.sensitivity.averaging import sample_mean
from geoquant.sensitivity.passes import loss_gradient, objective_of
from geoquant.sensitivity.protocol import PREDICTORS, DamageTable, Subject, table


class DeltaLoss:
    """Σ|g ⊙ (W − W_q)| at the quantized model, averaged over pieces of at most 32 samples; ranks only.

    The gradient is that of a piece's mean loss, as in the source that of a batch; the standard error is over pieces
    (0 when there is only one).
    """

    name = "delta_loss"
    unit = None

    def estimated_cost(self, subject: Subject) -> float:
        """Return a forward and a backward per grid, and a forward of the float model where labels are missing."""
        return 3.0 * len(subject.grids) + _needs_reference(subject)

    def measure(self, subject: Subject) -> DamageTable:
        """Quantize all sites on one grid after another, and differentiate there."""
        objective = objective_of(subject)
        references = _references(subject, objective) if _needs_reference(subject) else [None] * len(objective.batches)
        scores = np.zeros((len(objective.batches), len(subject.sites), len(subject.grids)))
        with task(self.name, len(subject.grids) * len(objective.batches)) as advance:
            for column in range(len(subject.grids)):
                shifts = [subject.displacement(row, column) for row in range(len(subject.sites))]
                with ExitStack() as stack, objective.studied():
                    for row, site in enumerate(subject.sites):
                        rounded = site.restore(subject.quantized[row][column].dequantize())
                        stack.enter_context(temporarily(subject.model, site, rounded))
                    for index, (batch, reference) in enumerate(zip(objective.batches, references, strict=True)):
                        scores[index, :, column] = _scores(subject, objective, batch, index, reference, shifts)
                        advance()
        mean, stderr = sample_mean(scores)
        return table(self.name, self.unit, subject, mean, stderr, self.estimated_cost(subject), subject.samples)


def _needs_reference(subject: Subject) -> bool:
    return targets_of(subject.batches[0]) is None


def _references(subject: Subject, objective: Objective) -> list[Tensor]:
    """Return the float model's predictions on every piece."""
    with inference(subject.model):
        return [predict(subject.model, batch, subject.forward).softmax(-1).clone() for batch in objective.batches]


def _scores(
    subject: Subject, objective: Objective, batch: Any, index: int, reference: Tensor | None, shifts: list[Tensor]
) -> Floats:
    """Return Σ|g ⊙ δ| of every site on one piece."""
    scored = objective.scored(batch)
    sent = loss_gradient(subject, batch, scored, index) if reference is None else _toward(scored, reference)
    found = torch.autograd.grad(scored.outputs, objective.unique, sent / len(scored.outputs), allow_unused=True)
    sums = [
        0.0 if gradient is None else float((gradient * shift).double().abs().sum())
        for gradient, shift in zip(found, shifts, strict=True)
    ]
    return np.array(sums)


def _toward(scored: Scored, reference: Tensor) -> Tensor:
    """Return the gradient of KL(reference ‖ outputs), averaged inside each sample."""
    kept = scored.mask.to(reference)
    share = kept / kept.sum(1, keepdim=True).clamp(min=1)
    gap = F.softmax(scored.outputs.detach(), -1) - reference.reshape(scored.outputs.shape)
    return gap * share.unsqueeze(-1)


PREDICTORS.register(DeltaLoss.name, DeltaLoss())
