"""How does a trainer that brings its own loop train a quantized model?

`prepare_` has made latent weights the model's parameters, so any trainer trains them as they are. What a loop has to
add is little: to say that a step begins (for oscillations, freezing and dampening), and to turn the model back into an
ordinary quantized one at the end. Callbacks for Lightning and for transformers' Trainer do both; this module imports
neither until one is asked for. In a loop of one's own::

    latents = prepare_(model, reference=float_model)
    latents.watch_()
    optimizer = torch.optim.AdamW(latents.groups(settings))
    for step, batch in enumerate(loader):
        latents.begin_step_(step / steps, settings)
        ...                                       # loss, backward, optimizer.step()
    latents.finish_()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from geoquant.errors import MissingExtraError
from geoquant.recovery.latents import Latents
from geoquant.recovery.settings import Settings

if TYPE_CHECKING:
    from lightning.pytorch import Callback
    from transformers import TrainerCallback


def lightning_callback(latents: Latents, settings: Settings | None = None, finish: bool = True) -> Callback:
    """Return a Lightning callback for a module that holds the prepared model.

    Args:
        latents: what `prepare_` returned.
        settings: its `freeze` and `dampening` are used; rates are the trainer's business.
        finish: whether the model becomes an ordinary quantized one when fitting ends.

    Raises:
        MissingExtraError: Lightning is not installed.
    """
    try:
        from lightning.pytorch import Callback
    except ImportError as error:
        raise MissingExtraError(
            "a Lightning callback needs the extra 'lightning': pip install 'geoquant[lightning]'"
        ) from error
    chosen = settings or Settings()

    class Recovery(Callback):  # type: ignore[misc]
        """Marks steps, and finishes the model."""

        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            latents.watch_()

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            latents.begin_step_(_share(trainer.global_step, trainer.estimated_stepping_batches), chosen)

        def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
            if finish:
                pl_module.eval()
                latents.finish_()

    return Recovery()


def trainer_callback(latents: Latents, settings: Settings | None = None, finish: bool = True) -> TrainerCallback:
    """Return a callback for transformers' `Trainer` on the prepared model; arguments are those of `lightning_callback`.

    Raises:
        MissingExtraError: transformers is not installed.
    """
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise MissingExtraError("a Trainer callback needs the extra 'hf': pip install 'geoquant[hf]'") from error
    chosen = settings or Settings()

    class Recovery(TrainerCallback):  # type: ignore[misc]
        """Marks steps, and finishes the model."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            latents.watch_()

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            latents.begin_step_(_share(state.global_step, state.max_steps), chosen)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if finish:
                latents.model.eval()
                latents.finish_()

    return Recovery()


def _share(step: int, total: float) -> float:
    """Return how much of the run is done, 0 where its end is not known.

    >>> _share(3, 12), _share(3, float("inf")), _share(3, -1)
    (0.25, 0.0, 0.0)
    """
    return min(1.0, step / total) if 0 < total < float("inf") else 0.0
