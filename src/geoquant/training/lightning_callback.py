"""Training in few bits under Lightning (the extra ``lightning``).

    Trainer(callbacks=[AdaptivePrecisionCallback("numgeom")])

For modules with one optimizer. The precision's own state goes into Lightning's checkpoints.
"""

from __future__ import annotations

from typing import Any

from geoquant.errors import GeoquantError, MissingExtraError
from geoquant.training.adaptive import AdaptivePrecision, adaptive
from geoquant.training.schedules import Schedule

try:
    from lightning.pytorch import Callback
except ImportError as error:
    raise MissingExtraError("Lightning's callback needs lightning; install geoquant[lightning]") from error


class AdaptivePrecisionCallback(Callback):  # type: ignore[misc]
    """Opens `adaptive` around Lightning's loop.

    Args:
        schedule: a schedule or its name.
        options: other arguments of `adaptive`.

    Attributes:
        precision: of the run, once it began.
    """

    def __init__(self, schedule: Schedule | str, **options: Any) -> None:
        self.schedule, self.options = schedule, options
        self.precision: AdaptivePrecision | None = None
        self._kept: dict[str, Any] | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin; where a checkpoint left off if there was one.

        Raises:
            GeoquantError: the module has several optimizers.
        """
        if len(trainer.optimizers) != 1:
            raise GeoquantError(f"one optimizer can be watched, the module has {len(trainer.optimizers)}")
        total = int(trainer.estimated_stepping_batches)
        epochs = max(1, trainer.max_epochs or 1)
        horizon = {"total_steps": total, "steps_per_epoch": max(1, total // epochs)}
        options = {**horizon, **self.options}
        self.precision = adaptive(pl_module, trainer.optimizers[0], self.schedule, **options)
        if self._kept is not None:
            self.precision.load_state_dict(self._kept)
        self.precision.__enter__()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Give model and optimizer back."""
        if self.precision is not None:
            self.precision.__exit__()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Give them back after an error too."""
        self.on_train_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return the precision's state, for Lightning's checkpoint."""
        return {} if self.precision is None else self.precision.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember it until training begins."""
        self._kept = state_dict or None
