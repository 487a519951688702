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
from geoquant.geometry.evidence import Estimate
from geoquant.geometry.objective import Chosen, Loss, Objective, make_objective
from geoquant.geometry.per_sample import gradient_norms
from geoquant.geometry.sweep import Sweep, sweep
from geoquant.models import Forward
from geoquant.progress import task

# Outputs per sample up to which every column is visited.
EXACT_COLUMNS = 64


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

    def note(self, run: Sweep, enumerated: bool, passes: float) -> None:
        """Count a batch, and keep for each parameter what holds on every batch so far."""
        visited = [
            known and (enumerated or uses == 0) for known, uses in zip(run.covered, run.structure.uses, strict=True)
        ]
        self.exactly = [old and new for old, new in zip(self.exactly, visited, strict=True)]
        self.affine = [old and new for old, new in zip(self.affine, run.structure.affine, strict=True)]
        self.count += run.scored.count
        self.cost += passes * run.samples
        self.rows += run.samples


def _add_batch(tally: _Tally, objective: Objective, batch: Any, index: int, seed: int, exact_columns: int) -> None:
    run = sweep(objective, batch)
    enumerated, probes, passes = run.enumerable(exact_columns), len(tally.sampled), 2.0
    if any(run.covered):
        norms = _norms(run, run.columns() if enumerated else run.signs(probes, seed, index))
        if enumerated:
            tally.exact += norms.sum(0)
        else:
            tally.sampled += norms
        passes += 2.0 * len(norms)
    if run.loose:
        for probe, direction in enumerate(run.signs(probes, seed, index)):
            # Over the whole batch at once: with independent signs the cross terms of samples average out.
            parts = run.whole_gradients(run.loose, direction)
            sizes = [0.0 if part is None else float(part.double().square().sum()) for part in parts]
            tally.sampled[probe, run.loose] += torch.tensor(sizes, dtype=torch.float64)
        passes += 2.0 * probes
    tally.note(run, enumerated, passes)


def _norms(run: Sweep, directions: Iterator[Tensor]) -> Tensor:
    """Return Σ over samples of ‖Jᵀ S·direction‖² per direction and parameter, (directions, parameters)."""
    rows = []
    for size, arrivals in run.arrivals(directions):
        found = torch.zeros(size, len(run.covered), dtype=torch.float64)
        for arrival in arrivals:
            norms = gradient_norms(arrival.uses, arrival.parameter, arrival.deltas, run.samples)
            found[:, arrival.place] = norms.double().sum(1).cpu()
        rows.append(found)
    return torch.cat(rows)
