"""A run from its first step to its last: what surrounds the steps?

Validation, certificates, traces, checkpoints, the share of each process, and the end: norms re-estimated, the best
state put back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geoquant.bounds import Certificate
from geoquant.models import Forward
from geoquant.progress import task
from geoquant.recovery.certifying import Certify, Witness
from geoquant.recovery.checkpoint import (
    CHECKPOINT_FILE,
    check_same_run,
    load_model_tensors_,
    load_optimizer_tensors_,
    load_random_tensors_,
    model_tensors,
    optimizer_tensors,
    random_tensors,
    read_checkpoint,
    write_checkpoint,
)
from geoquant.recovery.distributing import Crew
from geoquant.recovery.feeding import Source, Walked, mixed
from geoquant.recovery.judging import Judge
from geoquant.recovery.latents import Latents
from geoquant.recovery.objective import Objective
from geoquant.recovery.running import Stepper, absorb_statistics_, norms_of, reestimate_norms_, training_mode_
from geoquant.recovery.settings import Settings
from geoquant.recovery.trace import Trace, TracePoint, Tracer
from geoquant.storage import Json

_TRACE_POINTS = 20
_ABSORBED = 16  # batches whose statistics norms take over before they follow each batch


@dataclass(frozen=True)
class Watching:
    """What is looked at during a run, and what is kept of it.

    Attributes:
        validation: batches of the judge; None for none.
        validate_every: steps between its looks; an epoch when None.
        patience: looks without a better state after which the run ends.
        certify: ends the run as soon as what it reached is certified (see `Certify`); None certifies nothing.
        trace_every: steps between trace points; 20 points over the run when None, none at all when 0.
        trace_batch: where the trace looks; the first validation or training batch when None.
        river: directions along which the basin has no wall, by weight (see `Tracer`).
        checkpoint: folder of the checkpoint; None writes none.
        checkpoint_every: steps between checkpoints; an epoch when None.
        resume: whether to go on from the checkpoint, where there is one.
    """

    validation: Sequence[Any] | None = None
    validate_every: int | None = None
    patience: int | None = None
    certify: Certify | None = None
    trace_every: int | None = None
    trace_batch: Any = None
    river: Mapping[str, Tensor] | None = None
    checkpoint: Path | str | None = None
    checkpoint_every: int | None = None
    resume: bool = False


@dataclass(frozen=True, eq=False)
class Recovered:
    """What a recovery did.

    Attributes:
        settings: what it was asked.
        steps: optimizer steps that led to the result; 0 where nothing better than the beginning was found.
        losses: training loss of every step taken.
        start: validation loss before the first step; None without validation data.
        best: validation loss of the result; None without validation data.
        trace: looks at the run.
        certificate: of the result's drop, or where `certified` is false of what was last looked at; None where no
            certificate was asked.
        certified: whether the drop that was allowed is certified.
    """

    settings: Settings
    steps: int
    losses: tuple[float, ...]
    start: float | None = None
    best: float | None = None
    trace: Trace = field(default_factory=Trace)
    certificate: Certificate | None = None
    certified: bool = False

    def __str__(self) -> str:
        said = f"{len(self.losses)} steps, training loss {self.losses[0]:.4g} → {self.losses[-1]:.4g}"
        if self.start is not None and self.best is not None:
            said += f"; validation {self.start:.4g} → {self.best:.4g} (step {self.steps})"
        if self.certificate is not None:
            said += f"; {'certified' if self.certified else 'NOT certified'}: {self.certificate}"
        return said


class Run:
    """One training run on a prepared model.

    Args:
        latents: the prepared model.
        source: batches.
        objective: the loss.
        settings: of the training.
        watching: of what surrounds it.
        forward: how to call the model.
        crew: the processes that take part.
        witness: of the certificate, where one is asked.
    """

    def __init__(
        self,
        latents: Latents,
        source: Source,
        objective: Objective,
        settings: Settings,
        watching: Watching,
        forward: Forward | None,
        crew: Crew,
        witness: Witness | None = None,
    ) -> None:
        self._latents, self._source, self._objective = latents, source, objective
        self._settings, self._watching, self._forward, self._crew = settings, watching, forward, crew
        self._total, self._witness = settings.total_steps(len(source)), witness
        self._losses: list[float] = []
        self._points: list[TracePoint] = []
        self._judge = Judge(objective, watching.validation, watching.patience)
        latents.watch_()
        self._stepper = Stepper(crew.wrap(latents.model), latents, objective, settings, self._total)
        self._tracer, self._trace_every = self._make_tracer()
        self._stopped = False

    def _make_tracer(self) -> tuple[Tracer, int]:
        watching = self._watching
        batch = watching.trace_batch
        if batch is None:
            batch = watching.validation[0] if watching.validation else self._source.batch(0, 0)
        every = max(1, self._total // _TRACE_POINTS) if watching.trace_every is None else watching.trace_every
        return Tracer(self._latents, self._objective, batch, watching.river), every

    def go(self) -> Recovered:
        """Train; leave the prepared model in the best state seen, in eval mode."""
        training_mode_(self._latents.model, self._settings)
        with task("recovering", self._total) as advance:
            torch.manual_seed(mixed(self._settings.seed, 0))
            self._begin_()
            for _ in range(len(self._losses)):
                advance()
            while len(self._losses) < self._total and not self._stopped:
                self._step_()
                advance()
            steps = self._finish_()
        trace = Trace(tuple(self._points))
        seen = (self._judge.start, self._judge.best)
        vouched = (None, False) if self._witness is None else (self._witness.certificate, self._witness.certified)
        return Recovered(self._settings, steps, tuple(self._losses), *seen, trace, *vouched)

    def _begin_(self) -> None:
        if self._watching.resume and self._path is not None and self._path.exists():
            self._resume_(self._path)
            return
        self._look(0)
        if self._settings.norms == "train" and self._settings.reestimate:
            count = min(_ABSORBED, len(self._source), self._settings.reestimate)
            absorb_statistics_(self._latents.model, (self._batch(step) for step in range(count)), self._forward)
        self._trace(0)

    def _step_(self) -> None:
        step = len(self._losses)
        batch, weight = self._crew.share(self._batch(step))
        self._latents.begin_step_(step / self._total, self._settings)
        loss = self._crew.mean(self._stepper.gradient_(batch, weight) * weight)
        self._stepper.move_(step)
        self._losses.append(float(loss))
        done, last = step + 1, step + 1 == self._total
        self._trace(done)
        if not last and done % (self._watching.validate_every or len(self._source)) == 0:
            self._stopped = not self._look(done)
        if not last and not self._stopped and self._witness is not None and self._witness.due(done):
            self._stopped = self._certified_(done)
        if done % (self._watching.checkpoint_every or len(self._source)) == 0 or last or self._stopped:
            self._keep()

    def _look(self, done: int) -> bool:
        if self._settings.norms == "train":
            self._crew.agree_(self._latents.model)
        return self._judge.look(self._latents.model, done)

    def _certified_(self, done: int) -> bool:
        """Put the model as it would be finished now to the certificate; its norms stay so if it passes."""
        assert self._witness is not None
        norms = [buffer for norm in norms_of(self._latents.model) for buffer in norm.buffers()]
        saved = [buffer.clone() for buffer in norms]
        self._reestimate_(done)
        if self._passes_():
            return True
        for buffer, value in zip(norms, saved, strict=True):
            buffer.copy_(value)
        return False

    def _passes_(self) -> bool:
        """Whether every process certifies the model as it is."""
        assert self._witness is not None
        device = next(self._latents.model.parameters()).device
        passed = torch.tensor(float(self._witness.look(self._latents)), device=device)
        return float(self._crew.mean(passed)) == 1

    def _trace(self, done: int) -> None:
        if self._trace_every and (done % self._trace_every == 0 or done == self._total):
            self._points.append(self._tracer.look(done, self._losses[-1] if self._losses else 0.0))

    def _batch(self, step: int) -> Any:
        return self._source.batch(*divmod(step, len(self._source)))

    def _finish_(self) -> int:
        """Re-estimate the norms, and go back to the best state; return the step it is from."""
        model, done = self._latents.model, len(self._losses)
        if self._witness is not None and self._witness.certified:  # this state and no other
            self._judge.settle(model, done)
            model.eval()
            return done
        self._reestimate_(done)
        self._look(done)
        best = self._judge.restore_(model)
        model.eval()
        if self._witness is not None:
            self._passes_()
        return done if best is None else best

    def _reestimate_(self, done: int) -> None:
        """Give batch norms the statistics of the last batches."""
        settings = self._settings
        if settings.norms == "train" and settings.reestimate:
            first = max(0, done - settings.reestimate)
            batches = (self._batch(step) for step in range(first, done))
            reestimate_norms_(self._latents.model, batches, self._forward)

    @property
    def _path(self) -> Path | None:
        folder = self._watching.checkpoint
        return None if folder is None else Path(folder) / CHECKPOINT_FILE

    def _identity(self) -> Json:
        """Return what must be equal for a run to go on from a checkpoint."""
        plan = self._latents.state.plan
        grids = hashlib.sha256(repr((plan.inventory.names, plan.names, plan.activations)).encode()).hexdigest()
        layers = [each.site.name for each in self._latents.weights.values()]
        asked = None if self._witness is None else self._witness.wanted.identity()
        settings = asdict(self._settings)
        return {
            "settings": settings,
            "batches": len(self._source),
            "plan": grids,
            "layers": layers,
            "certify": asked,
        }

    def _keep(self) -> None:
        """Write a checkpoint; every process collects, the first one writes."""
        if self._path is None:
            return
        tensors = {
            **model_tensors(self._latents.model),
            **optimizer_tensors(self._stepper.optimizer),
            **self._judge.tensors(),
            **random_tensors(),
        }
        document = {
            **self._identity(),
            "losses": self._losses,
            "judge": self._judge.document(),
            "trace": [asdict(point) for point in self._points],
            "stopped": self._stopped,
            "certificate": None if self._witness is None else self._witness.document(),
        }
        if self._crew.first:
            write_checkpoint(self._path, document, tensors)

    def _resume_(self, path: Path) -> None:
        document, tensors = read_checkpoint(path)
        check_same_run(path, document, self._identity())
        load_model_tensors_(self._latents.model, tensors)
        load_optimizer_tensors_(self._stepper.optimizer, tensors)
        self._judge.load_(document["judge"], tensors)
        self._losses = list(document["losses"])
        self._points = [TracePoint(**point) for point in document["trace"]]
        self._stopped = document["stopped"]
        if self._witness is not None:
            self._witness.load_(document["certificate"])
        if isinstance(self._source, Walked) and len(self._losses) < self._total:
            self._source.go_to(*divmod(len(self._losses), len(self._source)))
        load_random_tensors_(tensors)
