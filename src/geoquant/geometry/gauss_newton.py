"""What is the trace of each layer's Gauss-Newton block, exactly where that is cheap?

tr(JᵀSSᵀJ) is a sum of squared gradient norms: one for each sample and each column of S (for cross-entropy
SSᵀ = diag(p) − ppᵀ, one column per class). The norms of all layers and samples come from one backward per
column (`geoquant.geometry.per_sample`), so with few classes the trace is exact at the price of a backward
per class. With many outputs, columns are mixed with random signs: unbiased, with a standard error. Weights
whose per-sample gradients have no known product form are always sampled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from geoquant.errors import DataError, GeoquantError
from geoquant.geometry.affine import Structure, structure_of
from geoquant.geometry.evidence import Estimate
from geoquant.geometry.objective import Chosen, Loss, Objective, Scored, make_objective
from geoquant.geometry.per_sample import Recorder, gradient_norms, owned_by_samples, pull_back, recording
from geoquant.geometry.probes import signs
from geoquant.models import Forward
from geoquant.progress import task

# Outputs per sample up to which every column is visited.
EXACT_COLUMNS = 64

# Gradients at layer outputs held at a time, in numbers; more directions at once share the unfolding of inputs.
_HELD = 1 << 24


@dataclass(frozen=True, eq=False)
class GaussNewtonTraces:
    """Traces by parameter (in the order of ``objective.unique``), per prediction.

    Attributes:
        value: (parameters,).
        stderr: (parameters,), 0 where exact.
        exact: per parameter.
        affine: per parameter, whether the outputs are piecewise affine in it on every batch.
        probes: random directions used where not exact.
        cost: forward-equivalents.
    """

    value: Tensor
    stderr: Tensor
    exact: tuple[bool, ...]
    affine: tuple[bool, ...]
    probes: int
    cost: float


def gauss_newton_traces(
    model: nn.Module,
    batches: Sequence[Any],
    sites: Chosen = None,
    *,
    forward: Forward | None = None,
    loss: str | Loss = "auto",
    probes: int = 8,
    seed: int = 0,
    exact_columns: int = EXACT_COLUMNS,
) -> dict[str, Estimate]:
    """Return tr(G_l) of each layer's block of the Gauss-Newton matrix of the mean loss.

    Args:
        model: any module; studied in eval mode, left as it was.
        batches: batches with targets, or without (then the divergence from the model's own predictions).
        sites: sites, names, or name → parameter; every parameter when None.
        forward: how to call the model.
        loss: see `make_objective`; a function of (model, batch) has no Gauss-Newton matrix.
        probes: random directions where traces are sampled.
        seed: of the directions.
        exact_columns: enumerate the columns of a sample up to this many outputs (predictions × classes).

    Returns:
        name → trace per prediction, in nats per squared weight unit.

    >>> layer = nn.Linear(2, 2, bias=False).double()
    >>> _ = nn.init.zeros_(layer.weight)
    >>> data = [(torch.tensor([[3.0, 4.0]]).double(), torch.tensor([0]))]
    >>> print(gauss_newton_traces(layer, data, ["weight"])["weight"])  # tr(diag(p) − ppᵀ)·‖x‖² = 0.5·25
    12.5 (exact: gauss-newton norms)
    """
    objective = make_objective(model, batches, sites, loss=loss, forward=forward)
    found = trace_gauss_newton(objective, probes=probes, seed=seed, exact_columns=exact_columns)
    return {name: estimate_of(found, place) for name, place in zip(objective.names, objective.position, strict=True)}


def estimate_of(found: GaussNewtonTraces, place: int) -> Estimate:
    """Return the trace of one parameter with its evidence."""
    value, stderr = float(found.value[place]), float(found.stderr[place])
    if found.exact[place]:
        return Estimate.known(value, "gauss-newton norms", cost=found.cost)
    return Estimate(value, stderr, samples=found.probes, cost=found.cost, method="gauss-newton sign probes")


def trace_gauss_newton(
    objective: Objective, *, probes: int = 8, seed: int = 0, exact_columns: int = EXACT_COLUMNS
) -> GaussNewtonTraces:
    """Compute the traces of all parameters of `objective`, exact where columns are few (see the module)."""
    if probes < 2:
        raise GeoquantError(f"probes={probes} gives no standard error; use at least 2")
    size = len(objective.unique)
    sums = torch.zeros(1 + probes, size, dtype=torch.float64)
    tally = _Tally(sums[0], sums[1:], [True] * size, [True] * size)
    with objective.studied(), task("Gauss-Newton traces", len(objective.batches)) as advance:
        for index, batch in enumerate(objective.batches):
            _add_batch(tally, objective, batch, index, seed, exact_columns)
            advance()
    if tally.count == 0:
        raise DataError("no prediction to average over: every position is masked")
    sampled = tally.sampled / tally.count
    stderr = sampled.std(0) / probes**0.5
    value = tally.exact / tally.count + sampled.mean(0)
    return GaussNewtonTraces(value, stderr, tuple(tally.exactly), tuple(tally.affine), probes, tally.cost / tally.rows)


@dataclass(eq=False)
class _Tally:
    """Running sums over batches: exact (parameters,) and sampled (probes, parameters)."""

    exact: Tensor
    sampled: Tensor
    exactly: list[bool]
    affine: list[bool]
    count: float = 0.0
    cost: float = 0.0
    rows: int = 0

    def note(self, structure: Structure, scored: Scored, passes: float) -> None:
        self.affine = [old and new for old, new in zip(self.affine, structure.affine, strict=True)]
        self.count += scored.count
        self.cost += passes * len(scored.outputs)
        self.rows += len(scored.outputs)


def _add_batch(tally: _Tally, objective: Objective, batch: Any, index: int, seed: int, exact_columns: int) -> None:
    with recording(objective.model, objective.unique) as recorder:
        scored = objective.scored(batch)
    structure = structure_of(scored.outputs, objective.unique)
    covered = _covered(objective, recorder, structure, scored.outputs)
    enumerated = scored.outputs[0].numel() <= exact_columns
    probes = len(tally.sampled)
    passes = 1.0
    if any(covered):
        directions = _columns(scored.outputs) if enumerated else _signs(scored.outputs, probes, seed, index)
        norms = _norms(objective, recorder, scored, covered, directions)
        if enumerated:
            tally.exact += norms.sum(0)
        else:
            tally.sampled += norms
        passes += 2.0 * len(norms)
    visited = [known and (enumerated or not uses) for known, uses in zip(covered, structure.uses, strict=True)]
    tally.exactly = [old and new for old, new in zip(tally.exactly, visited, strict=True)]
    loose = [place for place, known in enumerate(covered) if not known]
    if loose:
        for probe, direction in enumerate(_signs(scored.outputs, probes, seed, index)):
            tally.sampled[probe, loose] += _whole_norms(objective, scored, loose, direction)
        passes += 2.0 * probes
    tally.note(structure, scored, passes)


def _covered(objective: Objective, recorder: Recorder, structure: Structure, outputs: Tensor) -> list[bool]:
    """Say for which parameters every use was recorded and every recorded row belongs to one sample."""
    owned = owned_by_samples(outputs, recorder)
    known = []
    for parameter, uses in zip(objective.unique, structure.uses, strict=True):
        calls = recorder.of(parameter)
        complete = len(calls) == uses and all(owned[call] for call in calls) and not structure.mixes_samples
        # Several uses need whole gradients, sample by sample; large tables are sampled instead.
        small = uses == 1 or parameter.numel() * len(outputs) <= _HELD
        known.append(uses == 0 or (complete and small))
    return known


def _columns(outputs: Tensor) -> Iterator[Tensor]:
    """Yield, for every output of a sample, the direction that is 1 there in all samples."""
    flat = torch.zeros_like(outputs).flatten(1)
    for column in range(flat.shape[1]):
        direction = flat.clone()
        direction[:, column] = 1
        yield direction.view_as(outputs)


def _signs(outputs: Tensor, probes: int, seed: int, index: int) -> Iterator[Tensor]:
    for probe in range(probes):
        yield signs([outputs], seed, probe, index)[0]


def _norms(
    objective: Objective, recorder: Recorder, scored: Scored, covered: Sequence[bool], directions: Iterator[Tensor]
) -> Tensor:
    """Return Σ over samples of ‖Jᵀ S·direction‖² per direction and parameter, (directions, parameters)."""
    together = max(1, _HELD // max(1, recorder.width))
    places = [place for place, known in enumerate(covered) if known]
    rows: list[Tensor] = []
    group: list[list[Tensor | None]] = []
    for direction in directions:
        group.append(pull_back(scored.outputs, recorder, scored.half(direction)))
        if len(group) == together:
            rows.append(_group_norms(objective, recorder, len(scored.outputs), places, group))
            group = []
    if group:
        rows.append(_group_norms(objective, recorder, len(scored.outputs), places, group))
    return torch.cat(rows)


def _group_norms(
    objective: Objective, recorder: Recorder, samples: int, places: list[int], group: list[list[Tensor | None]]
) -> Tensor:
    found = torch.zeros(len(group), len(objective.unique), dtype=torch.float64)
    for place in places:
        parameter = objective.unique[place]
        calls = [call for call in recorder.of(parameter) if group[0][call] is not None]
        if calls:
            deltas = [torch.stack([delta for row in group if (delta := row[call]) is not None]) for call in calls]
            uses = [recorder.uses[call] for call in calls]
            found[:, place] = gradient_norms(uses, parameter, deltas, samples).double().sum(1).cpu()
    return found


def _whole_norms(objective: Objective, scored: Scored, places: list[int], direction: Tensor) -> Tensor:
    """Return ‖Jᵀ S·direction‖² of the whole batch at once: with independent signs cross terms average out."""
    chosen = [objective.unique[place] for place in places]
    pulled = torch.autograd.grad(scored.outputs, chosen, scored.half(direction), retain_graph=True, allow_unused=True)
    sizes = [0.0 if part is None else float(part.double().square().sum()) for part in pulled]
    return torch.tensor(sizes, dtype=torch.float64)
