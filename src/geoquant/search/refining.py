"""Can a plan be improved by trying other plans for real?

A table of single moves leaves out how layers act together. So whole plans near the current one are deployed and
measured by the divergence from the float model, which needs no labels; where a few samples make up most of it, by that
of softened predictions, since luck would decide otherwise (`geoquant.evaluation.Divergence`). What was measured
corrects the table (`geoquant.sensitivity.beliefs`); the exact solver then proposes the best plan within the budget that
changes at most a few layers. It is accepted when its divergence falls by more than the noise of the paired difference;
then the trust region grows; otherwise it shrinks. What is accepted was chosen on these very samples, so the final
figure belongs to others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError
from torch import nn

from geoquant import storage
from geoquant.arrays import Floats
from geoquant.data import collect, fingerprint
from geoquant.errors import FileFormatError, PlanError
from geoquant.evaluation import Divergence
from geoquant.models import Forward
from geoquant.plan import Plan
from geoquant.plan.nearby import Neighbourhood
from geoquant.progress import task
from geoquant.search.samples import Deploy, pipeline
from geoquant.sensitivity.beliefs import Beliefs, Columns, paired

STATE_VERSION = 2
SMALLEST = 2
"""Within a full budget a layer only gains bits when another one loses some."""
DRAWS = 30


@dataclass(frozen=True)
class Evaluated:
    """One plan that was deployed and measured.

    Attributes:
        names: the grid of each site, then ``site=grid`` for each activation (`Plan.key`).
        kl: divergence from the float model, nats per prediction.
        change: of the divergence that decides, from the plan that was current then; negative is better.
        stderr: of that change; samples are paired.
        radius: how many sites or fused groups were allowed to change.
        accepted: whether it became the current plan.
    """

    names: tuple[str, ...]
    kl: float
    change: float
    stderr: float
    radius: int
    accepted: bool


@dataclass(frozen=True)
class Refined:
    """The best plan found, and how.

    Attributes:
        plan: with the corrected table as its evidence, and a proven bound of its own sum of that table.
        trace: every evaluation in order, the plan to start from first.
        stopped: why it ended.
        temperature: of the predictions by which plans were compared; 1 is the divergence itself.
    """

    plan: Plan
    trace: tuple[Evaluated, ...]
    stopped: str
    temperature: float = 1.0

    @property
    def kl(self) -> float:
        """Divergence of the plan on the samples that chose it."""
        return next(step.kl for step in reversed(self.trace) if step.accepted)

    def __str__(self) -> str:
        return (
            f"{len(self.trace)} plans evaluated, {sum(step.accepted for step in self.trace) - 1} accepted: divergence "
            f"{self.trace[0].kl:.4g} -> {self.kl:.4g} nats on the samples that chose (compared at temperature "
            f"{self.temperature:g}; {self.stopped})"
        )


def refine(
    model: nn.Module,
    plan: Plan,
    batches: Iterable[Any],
    *,
    deploy: Deploy | None = None,
    evaluations: int = 40,
    radius: int | None = None,
    margin: float = 2.0,
    temperature: float | None = None,
    state: Path | str | None = None,
    label: str = "",
    forward: Forward | None = None,
    seed: int = 0,
) -> Refined:
    """Improve a solved plan by real evaluations, within its own request.

    Args:
        model: the float model; it stays as it is.
        plan: with evidence; its budget, menu, widths, fixed and fused layers are kept.
        batches: what the divergence is measured on; no labels needed.
        deploy: from a plan to a quantized model; nearest rounding when None (see `geoquant.search.pipeline`).
        evaluations: how many plans may be deployed, the first one included, earlier runs from `state` included too.
        radius: how many layers the first proposal may change; a quarter of them when None.
        margin: a plan is accepted when its divergence falls by more than so many standard errors of the paired
            difference. Many plans are tried, so at one standard error luck would pass for progress.
        temperature: of the predictions by which plans are compared; when None, the least of 1, 2, 4, 8 and 16 at which
            the first plan's divergence is known to 5 %.
        state: a JSON file, written after every evaluation; a run that finds it there goes on from it.
        label: what `deploy` does, in words; a `state` of another label is refused.
        forward: how to call the model.
        seed: of the draws that are made where the best guess was tried already.

    Raises:
        PlanError: the plan has no evidence, or `state` belongs to another run.
        DataError: the batches are empty or not finite.
        FileFormatError: `state` is damaged.
    """
    if evaluations < 1:
        raise PlanError(f"evaluations={evaluations} leaves nothing to do; allow at least 1")
    near = Neighbourhood(plan)
    near.evidence  # noqa: B018  says so when there is none
    data = collect(batches)
    first = max(SMALLEST, len(near.columns) // 4) if radius is None else radius
    key = _key(plan, data, seed=seed, radius=first, margin=margin, temperature=temperature, label=label)
    record = _Record(None if state is None else Path(state), key, temperature)
    run = _Run(near, Divergence(model, data, forward), deploy or pipeline(model), record, first, margin, seed)
    return run.go(evaluations)


def _key(plan: Plan, data: Sequence[Any], **wish: Any) -> str:
    """Identify a run by everything that its decisions follow from; the deployment by its label."""
    return storage.digest({"plan": plan.to_json(), "data": fingerprint(data), **wish})


class _Run:
    """The trust region; all decisions follow from the evaluations, so a resumed run repeats the earlier ones."""

    def __init__(
        self,
        near: Neighbourhood,
        divergence: Divergence,
        deploy: Deploy,
        record: _Record,
        radius: int,
        margin: float,
        seed: int,
    ) -> None:
        self._near, self._divergence, self._deploy, self._record = near, divergence, deploy, record
        self._radius, self._margin, self._seed = max(radius, 1), margin, seed
        self._current = near.columns
        self._values = self._first = self._evaluate(near.columns)
        self._trace = [self._entry(near.columns, self._values, 0.0, 0.0, True)]
        self._beliefs = Beliefs.of(near.choices.damage, near.columns, self._mean(self._values[1]))

    def go(self, evaluations: int) -> Refined:
        stopped = "all evaluations spent"
        with task("refining the plan", evaluations) as advance:
            advance()
            while len(self._trace) < evaluations:
                proposal = self._propose()
                if proposal is None:
                    stopped = "no plan near by is left to try"
                    break
                self._step(proposal)
                advance()
        decides = self._mean(self._first[1])
        nats = self._beliefs.scaled(self._trace[0].kl / decides if decides > 0 else 1.0)
        plan = self._near.weighed(self._current, nats.mean(), f"{self._near.evidence.table.predictor}_refined")
        return Refined(plan, tuple(self._trace), stopped, self._record.temperature or 1.0)

    def _propose(self) -> Columns | None:
        """Return the plan that should be best near the current one; where that was tried, one that might be."""
        seen = {self._near.columns, *self._beliefs.plans}
        for draw in range(DRAWS):
            generator = np.random.default_rng([self._seed, len(self._trace), draw])
            damage = self._beliefs.mean() if draw == 0 else self._beliefs.draw(generator)
            found = self._near.best(damage, self._current, self._radius)
            if found is not None and found[0] not in seen:
                return found[0]
            if draw and draw % 10 == 0:
                self._radius = min(self._radius + 1, len(self._current))
        return None

    def _step(self, proposal: Columns) -> None:
        values = self._evaluate(proposal)
        weights = self._divergence.weights
        change, stderr = paired(values[1], self._values[1], weights)
        accepted = change < -self._margin * stderr
        self._trace.append(self._entry(proposal, values, change, stderr, accepted))
        self._beliefs = self._beliefs.after(proposal, *paired(values[1], self._first[1], weights))
        if accepted:
            self._current, self._values = proposal, values
            self._radius = min(2 * self._radius, len(proposal))
        else:
            self._radius = max(SMALLEST, self._radius // 2)

    def _entry(self, columns: Columns, values: Floats, change: float, stderr: float, accepted: bool) -> Evaluated:
        key = self._near.bare(columns).key
        return Evaluated(key, self._mean(values[0]), change, stderr, self._radius, accepted)

    def _mean(self, values: Floats) -> float:
        return float(np.average(values, weights=self._divergence.weights))

    def _evaluate(self, columns: Columns) -> Floats:
        """Return a plan's divergence and the one that decides, (2, samples)."""
        plan = self._near.bare(columns)
        known = self._record.find(plan.key)
        if known is None:
            deployed, heat = self._deploy(plan), self._record.temperature
            if heat is None:
                heat, known = self._divergence.steady(deployed)
            else:
                known = self._divergence.of(deployed, 1.0, heat)
            self._record.add(plan.key, known, heat)
        return known


@dataclass(frozen=True)
class _Saved:
    """What the state file holds."""

    key: str
    temperature: float
    names: tuple[tuple[str, ...], ...]
    values: tuple[tuple[tuple[float, ...], ...], ...]


_ADAPTER = TypeAdapter(_Saved)


class _Record:
    """Evaluations so far, on disk after every one of them where there is a file."""

    def __init__(self, path: Path | None, key: str, temperature: float | None) -> None:
        self._path, self._key, self.temperature = path, key, temperature
        self._values: dict[tuple[str, ...], Floats] = {}
        if path is not None and path.exists():
            self._load(path)

    def find(self, names: tuple[str, ...]) -> Floats | None:
        return self._values.get(names)

    def add(self, names: tuple[str, ...], values: Floats, temperature: float) -> None:
        self._values[names], self.temperature = values, temperature
        if self._path is not None:
            rows = tuple(tuple(tuple(row) for row in both.tolist()) for both in self._values.values())
            saved = _Saved(self._key, temperature, tuple(self._values), rows)
            storage.write_document(self._path, "refinement", STATE_VERSION, _ADAPTER.dump_python(saved, mode="json"))

    def _load(self, path: Path) -> None:
        _, content = storage.read_document(path, "refinement", STATE_VERSION)
        try:
            saved = _ADAPTER.validate_python(content)
        except ValidationError as error:
            raise FileFormatError(f"{path} does not hold a refinement: {error.errors()[0]['msg']}") from error
        if saved.key != self._key:
            raise PlanError(
                f"{path} belongs to the refinement of another plan, other data or another pipeline; give another file "
                "or remove it"
            )
        self.temperature = saved.temperature
        for names, values in zip(saved.names, saved.values, strict=True):
            self._values[names] = np.array(values)
