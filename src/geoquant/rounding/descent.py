"""Can single codes of a finished rounding still be improved?

GPTQ never looks back. Coordinate descent does: for one column after another, with all others held, put every
weight where the layer's output error is least, which is the level nearest to w_j − (Σ_{k≠j} e_k H_kj)/H_jj; repeat.
The error falls in every step, so the result is never worse than what it starts from: the better of GPTQ and
nearest, row by row. It ends where no change of a single code helps; changes of two at once may still. Between
sweeps the scales are fitted again by least squares under H. See QuantEase (Behdin et al., arXiv:2309.01885).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from geoquant.grids import SCALE_DTYPES, Grid, QuantizedMatrix, Scales
from geoquant.rounding.gptq import Axis, Gptq, assemble
from geoquant.rounding.output_error import output_error
from geoquant.rounding.protocol import ROUNDINGS, RoundingContext

_BLOCK = 128  # columns


@dataclass(frozen=True)
class Descent:
    """Coordinate descent with its settings.

    Attributes:
        sweeps: over all columns, at most.
        start: what it starts from.
        damping: added to the diagonal of H, as a share of its mean.

    >>> matrix = torch.tensor([[0.4, 0.4, 3.0]])
    >>> alike = torch.tensor([[1.0, 0.99, 0.0], [0.99, 1.0, 0.0], [0.0, 0.0, 1.0]])
    >>> Descent()(matrix, Grid.parse("int3:maxabs:fp32"), RoundingContext(hessian=alike)).codes.sub(4).sum().item()
    4
    """

    sweeps: int = 8
    start: Gptq = field(default_factory=Gptq)
    damping: float = 0.01
    uses_inputs = True

    def __call__(self, matrix: Tensor, grid: Grid, context: RoundingContext) -> QuantizedMatrix:
        """Return `matrix` (channels, fan_in) on `grid`; without a Hessian in the context: nearest.

        Raises:
            GridError: as `Grid.fit`.
            ModelError: the Hessian does not fit the matrix.
        """
        if not grid.granularity.scaled or context.hessian is None:
            return grid.quantize(matrix)
        start = self.start(matrix, grid, context)
        size, found = 0, []
        for weights, scales, hessian in context.groups(matrix, grid, start.scales):
            level = grid.format.decode(start.codes[size : size + len(weights)])
            found.append(self._improve(weights.float(), grid, scales, level, self._damped(hessian)))
            size += len(weights)
        return assemble(grid, start.scales, found)

    def _damped(self, hessian: Tensor) -> Tensor:
        mean = hessian.diagonal().mean().clamp(min=0)
        lift = self.damping * mean if float(mean) > 0 else torch.ones_like(mean)
        return (hessian + lift * torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)).float()

    def _improve(
        self, weights: Tensor, grid: Grid, scales: Scales, level: Tensor, hessian: Tensor
    ) -> tuple[Tensor, Scales]:
        """Return levels and scales after the sweeps."""
        nearest = grid.format.nearest(grid.normalize(weights, scales))
        axis = Axis.of(grid, scales, weights.shape)
        plain = output_error(axis.values(nearest) - weights, hessian) < output_error(
            axis.values(level) - weights, hessian
        )
        level = torch.where(plain[:, None], nearest, level)
        for _ in range(self.sweeps):
            moved = _sweep(weights, axis, level, hessian)
            fitted = _refit(weights, axis, scales, moved, hessian)
            if torch.equal(moved, level) and torch.equal(fitted.scale, scales.scale):
                break
            level, scales = moved, fitted
            axis = Axis.of(grid, scales, weights.shape)
        return level, scales


ROUNDINGS.register("descent", Descent())


def _sweep(weights: Tensor, axis: Axis, level: Tensor, hessian: Tensor) -> Tensor:
    """Return the levels after each column was put where it is best for the others as they are.

    Columns of one block see each other's moves at once; those behind it hear of them in one product at its end.
    """
    level = level.clone()
    error = axis.values(level) - weights
    slope = error @ hessian
    for start in range(0, weights.shape[1], _BLOCK):
        columns = slice(start, start + _BLOCK)
        before = error[:, columns].clone()
        _sweep_block_(weights, axis, level, error, slope[:, columns], hessian[columns, columns], start)
        moved = error[:, columns] - before
        if moved.any():
            slope[:, start + _BLOCK :] += moved @ hessian[columns, start + _BLOCK :]
    return level


def _sweep_block_(
    weights: Tensor, axis: Axis, level: Tensor, error: Tensor, slope: Tensor, hessian: Tensor, start: int
) -> None:
    """Put the columns from `start` on, one after another, where they are best; `slope` and `hessian` are theirs."""
    diagonal = hessian.diagonal()
    for place in range(len(hessian)):
        column = start + place
        wished = weights[:, column] + error[:, column] - slope[:, place] / diagonal[place]
        chosen = axis.grid.format.nearest(axis.normalize(wished, column))
        change = axis.value(chosen, column) - weights[:, column] - error[:, column]
        worse = change * (2 * slope[:, place] + change * diagonal[place]) >= 0  # ties and rounding noise stay put
        change = torch.where(worse, 0.0, change)
        level[:, column] = torch.where(worse, level[:, column], chosen)
        error[:, column] += change
        slope.addr_(change, hessian[place])


def _refit(weights: Tensor, axis: Axis, scales: Scales, level: Tensor, hessian: Tensor) -> Scales:
    """Return the scales that suit the levels best under H, one per channel; others stay as they are."""
    kind = SCALE_DTYPES[axis.grid.scale_dtype]
    if scales.scale.shape != (len(weights), 1) or not kind.stored_as.is_floating_point:
        return scales
    unit = level - axis.zero
    square = output_error(unit, hessian)
    best = ((unit @ hessian) * weights).sum(1) / torch.where(square > 0, square, 1.0)
    best = torch.where(square > 0, best, scales.scale[:, 0]).clamp(-kind.largest, kind.largest)
    stored = kind.load(kind.store(best))[:, None]
    errors = [output_error(unit * scale - weights, hessian) for scale in (stored, scales.scale)]
    return Scales(torch.where((errors[0] < errors[1])[:, None], stored, scales.scale), scales.zero)
