"""How long, how fast, and with what is a quantized model trained?

One frozen value holds every setting of a recovery, checked when it is made, and is stored with each checkpoint: a run
can be replayed from it, and one that was interrupted refuses to go on with others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from geoquant.errors import GeoquantError, UnknownNameError, suggest
from geoquant.rates import half_cosine, one_cycle, warm

METHODS = ("lsq", "ste")
NORM_MODES = ("train", "frozen")
OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("cosine", "one-cycle", "constant")
ARITHMETIC = ("float32", "bf16")


class RecoveryError(GeoquantError):
    """Settings of a recovery contradict each other, or a checkpoint belongs to another run."""


@dataclass(frozen=True)
class Settings:
    """Settings of quantization-aware training.

    Attributes:
        epochs: passes over the batches; 1 when `steps` is not given either.
        steps: optimizer steps, instead of epochs.
        method: "lsq" learns the steps of the grids too, "ste" keeps them as rounding found them.
        optimizer: "adamw" or "sgd".
        rate: peak learning rate of the latent weights, in weight units.
        step_rate: peak learning rate of steps, relative to each step.
        free_rate: peak learning rate of norms and biases, which stay in float; 0 leaves them alone.
        weight_decay: of latent weights, decoupled under adamw.
        momentum: of sgd.
        schedule: "cosine" (after a warm-up, down to 0), "one-cycle" (up for 30 % of the steps from rate/25, then down
            to 0) or "constant".
        warmup: share of the steps over which the rate rises, for cosine and constant.
        norms: "train" lets batch norms see each batch and re-estimates their statistics at the end; "frozen" keeps
            the statistics that rounding left and learns only their affine part.
        reestimate: batches from which statistics are re-estimated at the end; only with norms="train".
        activations: whether the static scales of activations are learned too.
        temperature: of the distillation.
        labels: share of the loss that comes from labels when there is a teacher, in [0, 1].
        dampening: weight of Σ (latent − quantized)², which pulls latent weights to their levels; rises from 0 as half
            a cosine.
        freeze: a weight whose oscillation frequency exceeds this threshold at the end (and 0.1 or this, whichever is
            more, at the beginning) is frozen to the rounded running mean of its level; None freezes nothing.
        clip_norm: largest norm of a step's gradient; None for no limit.
        arithmetic: of the products in a training step: "float32", or "bf16" with sums in float32, about twice as fast
            where the processor has units for it. Latent weights, steps, the optimizer, and all that judges the result
            stay in float32.
        seed: order of batches, augmentation, dropout.

    Raises:
        RecoveryError: a number is out of its range.
        UnknownNameError: there is no such method, optimizer, schedule, arithmetic or way with norms.

    >>> Settings(steps=10, warmup=0).share(0), Settings(steps=10, warmup=0).share(5)
    (1.0, 0.5)
    """

    epochs: int | None = None
    steps: int | None = None
    method: str = "lsq"
    optimizer: str = "adamw"
    rate: float = 5e-4
    step_rate: float = 1e-3
    free_rate: float = 5e-4
    weight_decay: float = 0.0
    momentum: float = 0.9
    schedule: str = "cosine"
    warmup: float = 0.05
    norms: str = "train"
    reestimate: int = 64
    activations: bool = True
    temperature: float = 1.0
    labels: float = 0.0
    dampening: float = 0.0
    freeze: float | None = None
    clip_norm: float | None = None
    arithmetic: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (
            ("method", METHODS),
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("norms", NORM_MODES),
            ("arithmetic", ARITHMETIC),
        ):
            if getattr(self, name) not in known:
                raise UnknownNameError(
                    f"there is no {name} '{getattr(self, name)}'{suggest(getattr(self, name), known)}"
                )
        if self.epochs is not None and self.steps is not None:
            raise RecoveryError(f"got epochs={self.epochs} and steps={self.steps}; give one of them")
        for name, low, high in (
            ("epochs", 1, math.inf),
            ("steps", 1, math.inf),
            ("rate", 0, math.inf),
            ("step_rate", 0, math.inf),
            ("free_rate", 0, math.inf),
            ("weight_decay", 0, math.inf),
            ("momentum", 0, 1),
            ("warmup", 0, 1),
            ("reestimate", 0, math.inf),
            ("labels", 0, 1),
            ("temperature", 1e-6, math.inf),
            ("dampening", 0, math.inf),
            ("freeze", 0, 1),
            ("clip_norm", 1e-12, math.inf),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise RecoveryError(f"{name}={value} is not between {low:g} and {high:g}")

    def total_steps(self, per_epoch: int) -> int:
        """Return the number of optimizer steps for data of `per_epoch` batches."""
        return self.steps if self.steps is not None else (self.epochs or 1) * per_epoch

    def share(self, step: int, total: int | None = None) -> float:
        """Return the share of the peak learning rates at `step` of `total`, in [0, 1]."""
        total = total or self.steps or 1
        if self.schedule == "one-cycle":
            return one_cycle(step, total)
        rise = warm(step, total, self.warmup)
        return rise if self.schedule == "constant" else rise * half_cosine(step / total)
