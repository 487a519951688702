"""Training in few bits under Lightning (the extra ``lightning``).

    Trainer(callbacks=[AdaptivePrecisionCallback("numgeom")])

For modules with one optimizer. The precision's own state goes into Lightning's checkpoints.
"""

from __future__ import annotations

from typing import Any

from geoquant.errors import GeoquantError, MissingExtraError
from geoquant.training.opening import Opening

try:
    from lightning.pytorch import Callback
except ImportError as error:
    raise MissingExtraError("Lightning's callback needs lightning; install geoquant[lightning]") from error


class AdaptivePrecisionCallback(Opening, Callback):  # type: ignore[misc]
    """Opens `adaptive` around Lightning's loop; arguments as those of `Opening`."""

    _kept: dict[str, Any] | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin; where a checkpoint left off if there was one.

        Raises:
            GeoquantError: the module has several optimizers.
        """
        if len(trainer.optimizers) != 1:
            raise GeoquantError(f"one optimizer can be watched, the module has {len(trainer.optimizers)}")
        steps, epochs = int(trainer.estimated_stepping_batches), trainer.max_epochs or 1
        self._open(pl_module, trainer.optimizers[0], steps, epochs, self._kept)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Give model and optimizer back."""
        self._close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Give them back after an error too."""
        self._close()

    def state_dict(self) -> dict[str, Any]:
        """Return the precision's state, for Lightning's checkpoint."""
        return {} if self.precision is None else self.precision.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember it until training begins."""
        self._kept = state_dict or None
