"""Which state of a training run is the best one, and when is it time to stop?

The same loss that is trained, on batches that training does not see, in evaluation mode. The state before training
takes part: a recovery that finds nothing better leaves the model as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from geoquant.data import collect
from geoquant.models import batch_size, evaluating
from geoquant.recovery.checkpoint import load_model_tensors_, model_tensors
from geoquant.recovery.objective import Objective
from geoquant.storage import Json


class Judge:
    """Looks at a model now and then, and keeps the best state seen.

    Args:
        objective: the loss.
        batches: validation data; None never looks.
        patience: how many looks without a better one are enough; None for no end.

    Attributes:
        start: the first loss seen.
        best: the least loss seen.
        best_step: where.
    """

    def __init__(self, objective: Objective, batches: Sequence[Any] | None, patience: int | None = None) -> None:
        self._objective, self._patience = objective, patience
        self._batches = None if batches is None else collect(batches)
        self._kept: dict[str, Tensor] = {}
        self._waited = 0
        self.start: float | None = None
        self.best: float | None = None
        self.best_step = 0

    def look(self, model: nn.Module, step: int) -> bool:
        """Measure the loss; return whether training should go on."""
        if self._batches is None:
            return True
        loss = self._loss(model)
        if self.start is None:
            self.start = loss
        if self.best is None or loss < self.best:
            self.best, self.best_step, self._waited = loss, step, 0
            self._kept = {name: tensor.clone() for name, tensor in model_tensors(model).items()}
        else:
            self._waited += 1
        return self._patience is None or self._waited < self._patience

    def settle(self, model: nn.Module, step: int) -> None:
        """Take the model as it is for the result, whatever was better."""
        if self._batches is not None:
            self.best, self.best_step = self._loss(model), step

    @torch.no_grad()
    def _loss(self, model: nn.Module) -> float:
        assert self._batches is not None
        total = count = 0.0
        with evaluating(model):
            for batch in self._batches:
                size = batch_size(batch)
                total += size * float(self._objective(model, batch))
                count += size
        return total / count

    def restore_(self, model: nn.Module) -> int | None:
        """Put back the best state seen; return its step, None where nobody looked."""
        if self.best is None:
            return None
        load_model_tensors_(model, self._kept)
        return self.best_step

    def document(self) -> Json:
        """Return what a checkpoint needs of the judge, tensors apart."""
        return {"start": self.start, "best": self.best, "best_step": self.best_step, "waited": self._waited}

    def tensors(self) -> dict[str, Tensor]:
        """Return the best state seen."""
        return {f"best/{name}": tensor for name, tensor in self._kept.items()}

    def load_(self, document: Json, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `document` and `tensors` returned."""
        self.start, self.best = document["start"], document["best"]
        self.best_step, self._waited = document["best_step"], document["waited"]
        self._kept = {name.removeprefix("best/"): each for name, each in tensors.items() if name.startswith("best/")}
