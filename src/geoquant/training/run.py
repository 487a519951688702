"""A whole training run in few bits: the loop behind `geoquant train` and the benchmarks.

SGD with momentum or Adam, a one-cycle learning rate, cross-entropy, shuffled minibatches. Order, learning rate and
rounding are functions of the seed and the step, so that a run that was interrupted at a checkpoint ends in the same
bits as one that was not.
"""

from __future__ import annotations

import functools
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geoquant.errors import DataError
from geoquant.progress import task
from geoquant.rates import one_cycle
from geoquant.training.adaptive import AdaptivePrecision, adaptive
from geoquant.training.checkpoint import load_checkpoint_, read_more, save_checkpoint
from geoquant.training.noise import scrambled
from geoquant.training.numerics import Rounding
from geoquant.training.optimizer_state import Update
from geoquant.training.practice import Practice
from geoquant.training.schedules import Schedule

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class Settings:
    """What a run is, besides model and data.

    Attributes:
        schedule: its name, to tell runs apart.
        epochs: passes over the data.
        batch_size: samples per step; an incomplete last batch is dropped.
        learning_rate: peak of the one-cycle schedule.
        optimizer: ``sgd`` (momentum 0.9) or ``adam``.
        weight_decay: L2 for SGD and Adam.
        seed: of order and rounding.
        backward: rounding of gradients.
        update: rounding of what the optimizer keeps.
        check_every: steps between steps that `Practice` looks at; 0 for none.
    """

    schedule: str = "numgeom"
    epochs: int = 3
    batch_size: int = 64
    learning_rate: float = 0.05
    optimizer: Literal["sgd", "adam"] = "sgd"
    weight_decay: float = 5e-4
    seed: int = 0
    backward: Rounding = "stochastic"
    update: Update = "stochastic"
    check_every: int = 0


@dataclass
class TrainingRun:
    """What a run left behind, besides the trained model.

    Attributes:
        losses: of each step, on its minibatch, as it was computed; NaN where it was not finite.
        precision: log, bit-operations and assignment at the end.
        practice: the descent condition against the steps that were looked at.
    """

    losses: list[float]
    precision: AdaptivePrecision
    practice: Practice = field(default_factory=Practice)


def train_(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    settings: Settings,
    schedule: Schedule | None = None,
    folder: Path | None = None,
) -> TrainingRun:
    """Train `model` in place, in the bits that `schedule` gives.

    Args:
        model: maps (n, ...) inputs to (n, classes) logits; left in eval mode.
        inputs: (N, ...) float tensor.
        labels: (N,) integer classes.
        settings: everything else.
        schedule: decides precision; the one that the settings name when None.
        folder: where a checkpoint is kept after every epoch; an interrupted run of the same settings goes on from it.

    Raises:
        DataError: fewer samples than a batch; the folder holds a checkpoint of a run with other settings.

    >>> x = torch.cat([torch.randn(64, 2) - 3, torch.randn(64, 2) + 3])
    >>> run = train_(nn.Linear(2, 2), x, torch.arange(128) // 64, Settings("uniform:int4", batch_size=32))
    >>> run.losses[-1] < 0.1, run.precision.step
    (True, 12)
    """
    steps = len(inputs) // settings.batch_size
    if steps == 0:
        raise DataError(f"{len(inputs)} samples make no batch of {settings.batch_size}; lower the batch size")
    total = steps * settings.epochs
    optimizer = _optimizer(model, settings)
    batch: list[Tensor] = [inputs[:1], labels[:1]]

    def loss() -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    def probe() -> Tensor:
        return F.cross_entropy(model(batch[0][:32]), batch[1][:32])

    precision = adaptive(
        model,
        optimizer,
        schedule or settings.schedule,
        probe=probe,
        steps_per_epoch=steps,
        total_steps=total,
        seed=settings.seed,
        backward=settings.backward,
        update=settings.update,
    )
    run = TrainingRun([], precision)
    _resume(run, model, optimizer, settings, folder)
    model.train()
    with precision, task("training", total) as advance:
        for _ in range(precision.step):
            advance()
        while precision.step < total:
            epoch, place = divmod(precision.step, steps)
            rows = _order(len(inputs), settings.seed, epoch)[place * settings.batch_size :][: settings.batch_size]
            batch[:] = inputs[rows], labels[rows]
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * one_cycle(precision.step, total)
            run.losses.append(_step(run, optimizer, loss, settings))
            if folder is not None and precision.step % steps == 0:
                _keep(run, model, optimizer, settings, folder)
            advance()
    model.eval()
    return run


def _step(run: TrainingRun, optimizer: torch.optim.Optimizer, loss: Any, settings: Settings) -> float:
    optimizer.zero_grad(set_to_none=True)
    found = loss()
    found.backward()
    step = run.precision.step
    if settings.check_every and step % settings.check_every == settings.check_every - 1:
        with run.practice.step(run.precision, loss):
            optimizer.step()
    else:
        optimizer.step()
    return float(found.detach())


def _optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=rate, weight_decay=decay)
    return torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=decay)


@functools.lru_cache(maxsize=1)
def _order(count: int, seed: int, epoch: int) -> Tensor:
    """Return the order of an epoch, a function of seed and epoch, drawn at its first step; do not write."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(scrambled(seed, epoch) >> 1))


def _keep(
    run: TrainingRun, model: nn.Module, optimizer: torch.optim.Optimizer, settings: Settings, folder: Path
) -> None:
    losses = [loss if math.isfinite(loss) else None for loss in run.losses]
    more = {"settings": asdict(settings), "losses": losses, "practice": run.practice.state_dict()}
    save_checkpoint(folder / CHECKPOINT, model, optimizer, run.precision, more)


def _resume(
    run: TrainingRun, model: nn.Module, optimizer: torch.optim.Optimizer, settings: Settings, folder: Path | None
) -> None:
    if folder is None or not (folder / CHECKPOINT).exists():
        return
    found = read_more(folder / CHECKPOINT)
    if found["settings"] != asdict(settings):
        raise DataError(f"{folder / CHECKPOINT} is of a run with other settings; delete it, or choose another folder")
    more = load_checkpoint_(folder / CHECKPOINT, model, optimizer, run.precision)
    run.losses = [math.nan if loss is None else loss for loss in more["losses"]]
    run.practice = Practice(**more["practice"])
