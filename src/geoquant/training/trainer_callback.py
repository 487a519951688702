"""Training in few bits under the Trainer of transformers (the extra ``hf``).

    Trainer(..., callbacks=[AdaptivePrecisionCallback("numgeom")])

The precision's own state is kept beside each checkpoint, and taken up when the trainer resumes from one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from geoquant.errors import MissingExtraError
from geoquant.training.checkpoint import read_state, write_state
from geoquant.training.opening import Opening
from geoquant.training.ranks import rank

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise MissingExtraError("the Trainer's callback needs transformers; install geoquant[hf]") from error

STATE = "precision.safetensors"


class AdaptivePrecisionCallback(Opening, TrainerCallback):  # type: ignore[misc]
    """Opens `adaptive` around the Trainer's loop; arguments as those of `Opening`."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Begin, where a checkpoint left off if the trainer does."""
        optimizer = more["optimizer"]
        while hasattr(optimizer, "optimizer"):  # accelerate wraps it
            optimizer = optimizer.optimizer
        path = Path(args.output_dir) / f"checkpoint-{state.global_step}" / STATE
        kept = read_state(path) if state.global_step and path.exists() else None
        self._open(more["model"], optimizer, state.max_steps, round(state.num_train_epochs), kept)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep the precision's state with the checkpoint."""
        if self.precision is not None and rank() == 0:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_state(folder / STATE, self.precision.state_dict())

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Give model and optimizer back."""
        self._close()
