"""What does a displacement of one layer cost when its curvature is taken for a Kronecker product?

K-FAC (Martens and Grosse, arXiv 1503.05671; convolutions arXiv 1602.01407; weight sharing "expand",
arXiv 2311.00636): the layer's Gauss-Newton block ≈ A ⊗ G, A the second moment of what the layer saw and G
that of what came back, both over positions. The form δᵀ(A⊗G)δ = tr(δAδᵀG) keeps the correlations inside a
layer that a trace or a diagonal loses, at no Hessian product per δ. It is exact for one prediction, and for
deep linear nets with squared error; otherwise an approximation that drops the dependence of A on G.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from geoquant.errors import DataError, GeoquantError, ModelError
from geoquant.geometry.evidence import Estimate
from geoquant.geometry.factors import factors, from_weight
from geoquant.geometry.gauss_newton import EXACT_COLUMNS
from geoquant.geometry.objective import Chosen, Objective, make_objective
from geoquant.geometry.per_sample import Use
from geoquant.geometry.sweep import Arrival, Sweep, sweep
from geoquant.models import Forward
from geoquant.progress import task


@dataclass(frozen=True, eq=False)
class KroneckerFactors:
    """The two factors of one layer's curvature, per prediction.

    Attributes:
        rows: (draws, groups, rows, rows), or (draws, 1, rows) when diagonal (embeddings).
        columns: (draws, groups, columns, columns).
        module: the layer, for the layout of its weight.
        cost: forward-equivalents of all layers together.
        tied: the factors of the weight's other use, where an embedding is the head too; the two forms add up, and
            what is between them is dropped.

    One of the two has a draw per random direction when outputs were sampled; otherwise there is one draw.
    """

    rows: Tensor
    columns: Tensor
    module: nn.Module
    cost: float
    tied: KroneckerFactors | None = None

    @property
    def draws(self) -> int:
        """Random directions; 1 when the columns were enumerated."""
        return max(len(self.rows), len(self.columns))

    def quadratic(self, displacement: Tensor) -> Estimate:
        """Return δᵀ(A⊗G)δ for a displacement of the weight's shape, per prediction.

        The standard error is over random directions; the error of the approximation is not in it.
        """
        return self._estimate(self._forms(displacement))

    def trace(self) -> Estimate:
        """Return tr(A)·tr(G), the trace of the approximate block."""
        return self._estimate(self._traces())

    def _forms(self, displacement: Tensor) -> Tensor:
        delta = from_weight(self.module, displacement.to(self.columns)).unsqueeze(0)
        pushed = delta @ self.columns
        if self.rows.dim() == 3:
            each = ((pushed * delta).sum(-1) * self.rows).flatten(1).sum(1)
        else:
            each = ((self.rows @ pushed) * delta).flatten(1).sum(1)
        return each if self.tied is None else each + self.tied._forms(displacement)

    def _traces(self) -> Tensor:
        rows = self.rows.sum(-1) if self.rows.dim() == 3 else self.rows.diagonal(dim1=-2, dim2=-1).sum(-1)
        each = (rows * self.columns.diagonal(dim1=-2, dim2=-1).sum(-1)).sum(1)
        return each if self.tied is None else each + self.tied._traces()

    def _estimate(self, each: Tensor) -> Estimate:
        draws = len(each)
        stderr = float(each.std() / draws**0.5) if draws > 1 else 0.0
        return Estimate(
            float(each.mean()), stderr, samples=max(draws, 1), cost=self.cost, method="k-fac", note="an approximation"
        )


def kronecker_factors(
    model: nn.Module,
    batches: Sequence[Any],
    sites: Chosen = None,
    *,
    forward: Forward | None = None,
    loss: str = "auto",
    probes: int = 8,
    seed: int = 0,
    exact_columns: int = EXACT_COLUMNS,
) -> dict[str, KroneckerFactors]:
    """Return the Kronecker factors of each layer's Gauss-Newton block; arguments as in `gauss_newton_traces`.

    Raises:
        ModelError: a weight is used in a way that has no Kronecker form (say, inside MultiheadAttention).

    >>> layer = nn.Linear(2, 1, bias=False).double()
    >>> data = [(torch.tensor([[3.0, 4.0]]).double(), torch.zeros(1, 1).double())]
    >>> kronecker_factors(layer, data)["weight"].quadratic(torch.tensor([[1.0, 1.0]])).value  # (3 + 4)²
    49.0
    """
    if probes < 2:
        raise GeoquantError(f"probes={probes} gives no standard error; use at least 2")
    objective = make_objective(model, batches, sites, loss=loss, forward=forward)
    sums = [_UsesOfWeight() for _ in objective.unique]
    predictions, cost, rows = 0.0, 0.0, 0
    with objective.studied(), task("Kronecker factors", len(objective.batches)) as advance:
        for index, batch in enumerate(objective.batches):
            run = sweep(objective, batch)
            _refuse_uncovered(objective, run)
            enumerated = run.enumerable(exact_columns)
            directions = 0
            for size, arrivals in run.arrivals(run.columns() if enumerated else run.signs(probes, seed, index)):
                for arrival in arrivals:
                    sums[arrival.place].add(arrival, run.samples, directions, enumerated, probes)
                directions += size
            predictions += run.scored.count
            cost += (2.0 + 2.0 * directions) * run.samples
            rows += run.samples
            advance()
    if predictions == 0:
        raise DataError("no prediction to average over: every position is masked")
    return {
        name: sums[place].result(predictions, cost / rows, name)
        for name, place in zip(objective.names, objective.position, strict=True)
    }


def _refuse_uncovered(objective: Objective, run: Sweep) -> None:
    for name, place in zip(objective.names, objective.position, strict=True):
        calls = run.recorder.of(objective.unique[place])
        bias = objective.unique[place].dim() < 2
        if bias or len(calls) != run.structure.uses[place] or run.structure.mixes_samples:
            raise ModelError(
                f"'{name}' has no Kronecker factors: it is not (only) the weight of a Linear, convolution or "
                "Embedding layer; leave it out of `sites`"
            )


@dataclass(eq=False)
class _UsesOfWeight:
    """The sums of one weight, apart for its uses as a table to look up and as a matrix to multiply by."""

    sums: dict[bool, _FactorSums] = field(default_factory=dict)

    def add(self, arrival: Arrival, samples: int, first: int, enumerated: bool, probes: int) -> None:
        for use, deltas in zip(arrival.uses, arrival.deltas, strict=True):
            mine = self.sums.setdefault(_is_table(use.module), _FactorSums(use.module))
            mine.add(use, deltas, samples, first, 1 if enumerated else probes)

    def result(self, predictions: float, cost: float, name: str) -> KroneckerFactors:
        if not self.sums:
            raise ModelError(f"'{name}' has no influence on the outputs; leave it out of `sites`")
        found: KroneckerFactors | None = None
        for each in self.sums.values():
            found = each.result(predictions, cost, found)
        assert found is not None
        return found


@dataclass(eq=False)
class _FactorSums:
    """Sums over positions of one weight: the factor from the forward pass, and a draw per direction of the other."""

    module: nn.Module
    seen: Tensor | float = 0.0
    sent: Tensor | None = None
    positions: int = 0
    swapped: bool = False

    def add(self, use: Use, deltas: Tensor, samples: int, first: int, draws: int) -> None:
        sent, positions, self.swapped = _sent_moment(use.module, use.seen, deltas, samples)
        if self.sent is None:
            self.sent = sent.new_zeros(draws, *sent.shape[1:])
        if draws == 1:
            self.sent[0] += sent.sum(0)
        else:
            self.sent[first : first + len(sent)] += sent
        if first == 0:
            self.seen = self.seen + _seen_moment(use.module, use.seen, deltas, samples)
            self.positions += positions

    def result(self, predictions: float, cost: float, tied: KroneckerFactors | None) -> KroneckerFactors:
        assert isinstance(self.seen, Tensor)
        assert self.sent is not None
        seen, sent = self.seen.unsqueeze(0) / self.positions, self.sent / predictions
        rows, columns = (seen, sent) if self.swapped else (sent, seen)
        return KroneckerFactors(rows, columns, self.module, cost, tied)


def _is_table(module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding)


def _moment(values: Tensor) -> Tensor:
    """Sum v·vᵀ over samples and positions: (directions, samples, groups, positions, n) → (directions, groups, n, n)."""
    flat = values.double().transpose(1, 2).flatten(2, 3)
    return flat.transpose(-1, -2) @ flat


def _sent_moment(module: nn.Module, seen: Tensor, deltas: Tensor, samples: int) -> tuple[Tensor, int, bool]:
    """Return the factor of what came back, the positions it sums over, and whether it belongs to the columns."""
    if _is_table(module):
        rows = deltas.reshape(len(deltas), samples, 1, -1, deltas.shape[-1])
        return _moment(rows), seen.numel(), True
    left, right = factors(module, seen, deltas, samples)
    swapped = isinstance(module, nn.modules.conv._ConvTransposeNd)
    return _moment(right if swapped else left), left.shape[1] * left.shape[3], swapped


def _seen_moment(module: nn.Module, seen: Tensor, deltas: Tensor, samples: int) -> Tensor:
    """Return the factor of what the layer saw, without the axis of directions."""
    if isinstance(module, nn.Embedding):
        return torch.bincount(seen.flatten(), minlength=module.num_embeddings).double().unsqueeze(0)
    left, right = factors(module, seen, deltas[:1], samples)
    swapped = isinstance(module, nn.modules.conv._ConvTransposeNd)
    return _moment(left if swapped else right)[0]
