"""½δᵀGδ: what rounding one layer costs to second order, along the very displacement of its weights.

G is the Gauss-Newton matrix of the divergence from the float model's predictions (its Fisher information), so this
is the second-order term of what `one_layer_kl` measures; it keeps every correlation inside the layer. To first order
the displacement δ moves the logits by u = Jδ, and δᵀGδ = uᵀ(diag(p) − ppᵀ)u: one backward per class gives u for all
layers, grids and samples at once. `gauss_newton_gram` keeps u, and with it the cross terms of every pair of layers.
Second order at the float point underestimates at two and three bits. Needs no labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geoquant.arrays import Floats
from geoquant.geometry import Objective, make_objective
from geoquant.geometry.gauss_newton import EXACT_COLUMNS
from geoquant.geometry.hvp import push_forward
from geoquant.geometry.plain import PlainBatchNorm
from geoquant.geometry.sweep import HELD, Arrival, Sweep, sweep
from geoquant.progress import task
from geoquant.sensitivity.averaging import sample_mean
from geoquant.sensitivity.passes import applied, objective_of
from geoquant.sensitivity.protocol import PREDICTORS, DamageTable, Subject, table

# Small pieces, so that the gradients of all classes are held at once and every layer is applied once per grid.
_PIECE = 8
# Forward-equivalents of one displacement pushed through the derivative's own graph.
PUSH_COST = 4.0


@dataclass(frozen=True, eq=False)
class Shifts:
    """First-order displacements of the logits, Sᵀ·J_l·δ_lg with SSᵀ = diag(p) − ppᵀ, for every choice.

    Attributes:
        values: (samples, sites, grids, directions); directions are all outputs of a sample, or random signs over
            the root of their number, so that squares add up to the form (on average).
        predictions: (samples,).
        cost: forward-equivalents.
    """

    values: Floats
    predictions: Floats
    cost: float

    def damage(self, columns: Sequence[int]) -> tuple[float, float]:
        """Return ½(Σδ)ᵀG(Σδ) with site i at grid `columns[i]`, all cross terms kept, and its standard error."""
        moved = self.values[:, np.arange(len(columns)), list(columns)].sum(1)
        mean, stderr = sample_mean(self._halved(moved), self.predictions)
        return float(mean), float(stderr)

    def gram(self, columns: Sequence[int]) -> Floats:
        """Return ½δ_lᵀGδ_m of every pair of sites, (sites, sites); its sum is `damage`."""
        moved = self.values[:, np.arange(len(columns)), list(columns)]
        found: Floats = np.einsum("nld,nmd->lm", moved, moved) / (2 * self.predictions.sum())
        return found

    def alone(self) -> tuple[Floats, Floats]:
        """Return ½δᵀGδ of each choice alone, (sites, grids), and its standard error."""
        return sample_mean(self._halved(self.values), self.predictions)

    def _halved(self, moved: Floats) -> Floats:
        halved: Floats = np.square(moved).sum(-1) / 2
        return halved


class GaussNewtonForm:
    """½δᵀGδ of every choice alone, in nats per prediction, with the standard error over samples.

    Args:
        probes: random directions where a sample has more than 64 outputs, at least 2.
    """

    name = "gauss_newton_form"
    unit = "nats per prediction"

    def __init__(self, probes: int = 8) -> None:
        self.probes = probes

    def estimated_cost(self, subject: Subject) -> float:
        """Return a backward per class or probe, and all layers once per grid (see `shifts_cost`)."""
        return shifts_cost(subject, self.probes)

    def measure(self, subject: Subject) -> DamageTable:
        """Push every displacement to the logits and take its length there."""
        shifts = gauss_newton_shifts(subject, self.probes)
        damage, stderr = shifts.alone()
        return table(self.name, self.unit, subject, damage, stderr, shifts.cost, len(shifts.predictions))


def gauss_newton_shifts(subject: Subject, probes: int = 8, what: str = "Gauss-Newton form") -> Shifts:
    """Push every displacement of `subject` to the logits, to first order.

    Args:
        subject: what is measured; its labels are not looked at.
        probes: random directions where a sample has more than 64 outputs.
        what: name of the work for whoever watches.
    """
    objective = objective_of(subject, _PIECE)
    values: list[Floats] = []
    counts: list[Floats] = []
    cost = 0.0
    with objective.studied(), task(what, len(objective.batches)) as advance:
        for index, batch in enumerate(objective.batches):
            run = sweep(objective, batch)
            values.append(_shifts(subject, run, probes, index))
            counts.append(run.scored.mask.sum(1).double().cpu().numpy())
            if run.loose:
                values[-1][:, run.loose] = _loose_shifts(subject, run, batch, probes, index)
            cost += _passes(subject, run, probes) * run.samples
            advance()
    predictions = np.concatenate(counts)
    return Shifts(_joined(values), predictions, cost / len(predictions))


def _joined(values: Sequence[Floats]) -> Floats:
    """Join batches; one with fewer outputs a sample has nothing in the directions that it lacks."""
    most = max(part.shape[-1] for part in values)
    return np.concatenate([np.pad(part, [(0, 0)] * 3 + [(0, most - part.shape[-1])]) for part in values])


def shifts_cost(subject: Subject, probes: int) -> float:
    """Say what `gauss_newton_shifts` will cost, from one forward of the first few samples."""
    objective = objective_of(subject, _PIECE)
    with objective.studied():
        return _passes(subject, sweep(objective, objective.batches[0]), probes)


def _directions(run: Sweep, probes: int) -> int:
    return run.scored.outputs[0].numel() if run.enumerable(EXACT_COLUMNS) else probes


def _passes(subject: Subject, run: Sweep, probes: int) -> float:
    """Forward, check of the layout, a backward per direction, and all layers per grid for each held group."""
    directions = _directions(run, probes)
    groups = math.ceil(directions / max(1, HELD // max(1, run.recorder.width)))
    return 2.0 + 2.0 * directions + len(subject.grids) * (groups + PUSH_COST * len(run.loose)) + 3.0 * bool(run.loose)


def _shifts(subject: Subject, run: Sweep, probes: int, index: int) -> Floats:
    """Return ⟨S·direction, Jδ⟩ of one batch, (samples, sites, grids, directions); 0 at sites that are not covered."""
    enumerated = run.enumerable(EXACT_COLUMNS)
    directions = run.columns() if enumerated else run.signs(probes, subject.seed, index)
    parts = []
    for size, arrivals in run.arrivals(directions):
        found = np.zeros((run.samples, len(subject.sites), len(subject.grids), size))
        for arrival in arrivals:
            for column in range(len(subject.grids)):
                moved = _inner(arrival, subject.displacement(arrival.place, column), run.samples)
                found[:, arrival.place, column] = moved.double().cpu().numpy()
        parts.append(found)
    joined = np.concatenate(parts, -1)
    return joined if enumerated else joined / math.sqrt(joined.shape[-1])


def _inner(arrival: Arrival, shift: Tensor, samples: int) -> Tensor:
    """Return ⟨delta, shift applied to what the layer saw⟩, (samples, directions), over all calls of the weight."""
    total = arrival.deltas[0].new_zeros(samples, len(arrival.deltas[0]))
    for use, deltas in zip(arrival.uses, arrival.deltas, strict=True):
        moved = applied(use.module, shift, use.seen).reshape(samples, -1)
        total += torch.einsum("dnk,nk->nd", deltas.reshape(len(deltas), samples, -1), moved)
    return total


def _loose_shifts(subject: Subject, run: Sweep, batch: Any, probes: int, index: int) -> Floats:
    """Do the same for weights that no plain layer holds: push each displacement through the derivative's graph."""
    chosen = [subject.sites[place] for place in run.loose]
    objective = make_objective(subject.model, [batch], chosen, loss="kl", forward=subject.forward)
    enumerated = run.enumerable(EXACT_COLUMNS)
    directions = list(run.columns() if enumerated else run.signs(probes, subject.seed, index))
    along = torch.stack([run.scored.half(direction) for direction in directions]).flatten(2)
    found = np.zeros((run.samples, len(chosen), len(subject.grids), len(along)))
    with PlainBatchNorm():
        _, push = push_forward(objective, batch)
    for row, place in enumerate(run.loose):
        for column in range(len(subject.grids)):
            moved = push(_only(objective, row, subject.displacement(place, column))).flatten(1)
            found[:, row, column] = torch.einsum("dnk,nk->nd", along, moved).double().cpu().numpy()
    return found if enumerated else found / math.sqrt(len(along))


def _only(objective: Objective, place: int, shift: Tensor) -> list[Tensor]:
    return [shift if index == place else torch.zeros_like(part) for index, part in enumerate(objective.unique)]


PREDICTORS.register(GaussNewtonForm.name, GaussNewtonForm())
