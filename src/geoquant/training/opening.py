"""How does training in few bits open and close around a loop that somebody else runs?

What the callbacks of Lightning and of transformers' Trainer share; when the loop begins and ends, and where checkpoints
lie, is theirs to say.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from geoquant.training.adaptive import AdaptivePrecision, adaptive
from geoquant.training.schedules import Schedule


class Opening:
    """Opens `adaptive` around a loop.

    Args:
        schedule: a schedule or its name.
        options: other arguments of `adaptive`.

    Attributes:
        precision: of the run, once it began.
    """

    def __init__(self, schedule: Schedule | str, **options: Any) -> None:
        self.schedule, self.options = schedule, options
        self.precision: AdaptivePrecision | None = None

    def _open(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, epochs: int, kept: dict[str, Any] | None
    ) -> None:
        """Begin a run of so many optimizer steps in so many epochs, where the state `kept` left off."""
        horizon = {"total_steps": steps, "steps_per_epoch": max(1, steps // max(1, epochs))}
        self.precision = adaptive(model, optimizer, self.schedule, **{**horizon, **self.options})
        if kept is not None:
            self.precision.load_state_dict(kept)
        self.precision.__enter__()

    def _close(self) -> None:
        """Give model and optimizer back."""
        if self.precision is not None:
            self.precision.__exit__()
