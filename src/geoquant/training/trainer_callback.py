"""Training in few bits under the Trainer of transformers (the extra ``hf``).

    Trainer(..., callbacks=[AdaptivePrecisionCallback("numgeom")])

The precision's own state is kept beside each checkpoint, and taken up when the trainer resumes from one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from geoquant.errors import MissingExtraError
from geoquant.training.adaptive import AdaptivePrecision, adaptive
from geoquant.training.checkpoint import read_state, write_state
from geoquant.training.ranks import rank
from geoquant.training.schedules import Schedule

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise MissingExtraError("the Trainer's callback needs transformers; install geoquant[hf]") from error

STATE = "precision.safetensors"


class AdaptivePrecisionCallback(TrainerCallback):  # type: ignore[misc]
    """Opens `adaptive` around the Trainer's loop.

    Args:
        schedule: a schedule or its name.
        options: other arguments of `adaptive`.

    Attributes:
        precision: of the run, once it began.
    """

    def __init__(self, schedule: Schedule | str, **options: Any) -> None:
        self.schedule, self.options = schedule, options
        self.precision: AdaptivePrecision | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Begin, where a checkpoint left off if the trainer does."""
        optimizer = more["optimizer"]
        while hasattr(optimizer, "optimizer"):  # accelerate wraps it
            optimizer = optimizer.optimizer
        epochs = max(1, round(state.num_train_epochs))
        horizon = {"total_steps": state.max_steps, "steps_per_epoch": max(1, state.max_steps // epochs)}
        self.precision = adaptive(more["model"], optimizer, self.schedule, **{**horizon, **self.options})
        kept = Path(args.output_dir) / f"checkpoint-{state.global_step}" / STATE
        if state.global_step and kept.exists():
            self.precision.load_state_dict(read_state(kept))
        self.precision.__enter__()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep the precision's state with the checkpoint."""
        if self.precision is not None and rank() == 0:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_state(folder / STATE, self.precision.state_dict())

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Give model and optimizer back."""
        if self.precision is not None:
            self.precision.__exit__()
