"""Round column after column, and let the columns still to come make up for each error.

GPTQ (Frantar et al., arXiv:2210.17323): the damage of an error E at the layer's output is tr(E H Eᵀ) with H = E[x xᵀ].
With U the upper Cholesky factor of H⁻¹, rounding column j with error e = (w_j − q_j)/U_jj and moving the later columns
by −e·U_jk is optimal for what is left. Columns go in the order of descending diagonal of H. Greedy: it sees the
layer's inputs, not the network's loss, and never looks back. Where H is diagonal it is nearest rounding.

Deviations from the paper: scales, also those of groups, are fitted once before rounding; columns whose inputs were
always zero go to nearest instead of 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from geoquant.grids import Grid, QuantizedMatrix, Scales
from geoquant.rounding.protocol import ROUNDINGS, RoundingContext

_STRONGEST = 1e3


@dataclass(frozen=True)
class Gptq:
    """GPTQ with its settings.

    Attributes:
        damping: added to the diagonal of H, as a share of its mean.
        act_order: columns of large inputs first; else from left to right.
        block: columns whose updates are applied at once to all later ones; a matter of speed only.
        weighted: fit scales by errors weighted with the diagonal of H.

    >>> matrix = torch.tensor([[0.4, 0.4, 3.0]])
    >>> alike = torch.tensor([[1.0, 0.99, 0.0], [0.99, 1.0, 0.0], [0.0, 0.0, 1.0]])  # two inputs that go together
    >>> Gptq()(matrix, Grid.parse("int3:maxabs:fp32"), RoundingContext(hessian=alike)).codes.sub(4).tolist()
    [[0, 1, 3]]
    """

    damping: float = 0.01
    act_order: bool = True
    block: int = 128
    weighted: bool = True
    uses_inputs = True

    def __call__(self, matrix: Tensor, grid: Grid, context: RoundingContext) -> QuantizedMatrix:
        """Return `matrix` (channels, fan_in) on `grid`; without a Hessian in the context: nearest.

        Raises:
            GridError: as `Grid.fit`.
            ModelError: the Hessian does not fit the matrix.
        """
        if not grid.granularity.scaled or context.hessian is None:
            return grid.quantize(matrix)
        importance = context.importance(matrix)
        scales = grid.fit(matrix, importance if self.weighted else None)
        groups = context.groups(matrix, grid, scales)
        return assemble(grid, scales, [(self.place(rows, grid, own, hessian), own) for rows, own, hessian in groups])

    def place(self, matrix: Tensor, grid: Grid, scales: Scales, hessian: Tensor) -> Tensor:
        """Return x (rows, fan_in), in units of the scales, whose nearest levels are GPTQ's choice.

        Args:
            matrix: (rows, fan_in).
            grid: with scales.
            scales: of these rows.
            hessian: (fan_in, fan_in), symmetric, ≥ 0.
        """
        order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
        order = order if self.act_order else torch.arange(len(order), device=order.device)
        upper = inverse_factor(hessian[order][:, order], self.damping)
        axis = Axis.of(grid, scales, matrix.shape).columns(order)
        placed = torch.empty_like(matrix, dtype=torch.float32)
        placed[:, order] = _sweep(matrix.float()[:, order], axis, upper.float(), self.block)
        return placed


ROUNDINGS.register("gptq", Gptq())


@dataclass(frozen=True, eq=False)
class Axis:
    """Scales and zero points spread over every weight, for rounding a few columns at a time.

    Attributes:
        grid: whose levels.
        scale: (rows, fan_in) float32.
        zero: (rows, fan_in) float32; zeros where the grid has no zero point.
    """

    grid: Grid
    scale: Tensor
    zero: Tensor

    @staticmethod
    def of(grid: Grid, scales: Scales, shape: torch.Size) -> Axis:
        """Spread `scales` over a matrix of `shape`."""
        scale = grid.granularity.expand(scales.scale, shape[1]).expand(shape)
        if scales.zero is None:
            return Axis(grid, scale, torch.zeros_like(scale))
        return Axis(grid, scale, grid.granularity.expand(scales.zero, shape[1]).expand(shape).float())

    def columns(self, chosen: Tensor) -> Axis:
        """Return the axis of the `chosen` columns."""
        return Axis(self.grid, self.scale[:, chosen], self.zero[:, chosen])

    def normalize(self, weights: Tensor, column: int) -> Tensor:
        """Return w/scale + zero of one column (rows,); 0 + zero under a scale of 0."""
        scale = self.scale[:, column]
        return torch.where(scale == 0, 0.0, weights / scale) + self.zero[:, column]

    def values(self, level: Tensor) -> Tensor:
        """Return the weights (rows, fan_in) that levels stand for."""
        return (level - self.zero) * self.scale

    def value(self, x: Tensor, column: int) -> Tensor:
        """Return the weights that the levels nearest to x stand for."""
        return (self.grid.format.nearest(x) - self.zero[:, column]) * self.scale[:, column]


def assemble(grid: Grid, start: Scales, parts: Sequence[tuple[Tensor, Scales]]) -> QuantizedMatrix:
    """Join (x, scales) of the groups of channels into one matrix; one scale for several groups stays `start`'s."""
    shared = len(start.scale) == 1 < len(parts)
    scale = start.scale if shared else torch.cat([scales.scale for _, scales in parts])
    codes = grid.format.encode(torch.cat([x for x, _ in parts]))
    return QuantizedMatrix(grid, codes, Scales(scale, start.zero))


def inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """Return U, upper triangular float64, with Uᵀ U = (H + damping · mean diag · I)⁻¹.

    Rows and columns of inputs that were always zero become those of the identity. Where H is too singular for
    the damping, the damping grows tenfold until it is not.

    >>> inverse_factor(torch.tensor([[4.0, 0.0], [0.0, 0.25]]), 0.0).abs().tolist()
    [[0.5, 0.0], [0.0, 2.0]]
    """
    h = hessian.double().clone()
    diagonal = h.diagonal()
    mean = float(diagonal.mean())
    diagonal[diagonal <= 0] = mean if mean > 0 else 1.0
    while True:
        damped = h + damping * mean * torch.eye(len(h), dtype=h.dtype, device=h.device)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not int(failed):
                return torch.as_tensor(upper)
        if damping > _STRONGEST:  # nothing about the inputs can be told from rounding noise
            return torch.eye(len(h), dtype=h.dtype, device=h.device)
        damping = max(10 * damping, 1e-6)


def _sweep(weights: Tensor, axis: Axis, upper: Tensor, block: int) -> Tensor:
    """Round the columns of `weights` (rows, fan_in), which is overwritten, from left to right."""
    placed = torch.empty_like(weights)
    for start in range(0, weights.shape[1], block):
        end = min(start + block, weights.shape[1])
        errors = weights.new_empty(len(weights), end - start)
        for column in range(start, end):
            placed[:, column] = axis.normalize(weights[:, column], column)
            rounded = axis.value(placed[:, column], column)
            error = (weights[:, column] - rounded) / upper[column, column]
            weights[:, column + 1 : end].addr_(error, upper[column, column + 1 : end], alpha=-1)
            errors[:, column - start] = error
        weights[:, end:].addmm_(errors, upper[start:end, end:], alpha=-1)
    return placed
