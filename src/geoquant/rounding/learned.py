"""Up or down? Learned for all weights of a layer together, by gradient on the layer's output error.

Two roundings that minimise tr(E H Eᵀ), the mean squared error of the layer's output over the calibration data:

- `AdaRound` (Nagel et al., arXiv:2004.10568): each weight is low + h(v)·(high − low) between its two neighbouring
  levels, h a stretched sigmoid, and a regulariser with falling exponent β drives every h to 0 or 1.
- `SignRound` (Cheng et al., arXiv:2309.05516): offsets in [−½, ½] are added before rounding, and scales shrink by a
  factor in [½, 1]; both follow the sign of the gradient, straight through the rounding.

Neither sees other layers (`geoquant.quantize.blocks` does). Deviations: the papers draw batches, we use the second
moment of all of them; results worse than nearest rounding in a row give way to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from geoquant.grids import SCALE_DTYPES, Grid, QuantizedMatrix, Scales
from geoquant.rounding.gptq import Axis, assemble
from geoquant.rounding.output_error import output_error
from geoquant.rounding.protocol import ROUNDINGS, RoundingContext

Learn = Callable[[Tensor, Grid, Scales, Tensor], tuple[Tensor, Scales]]


@dataclass(frozen=True)
class AdaRound:
    """AdaRound with its settings.

    Attributes:
        steps: of Adam.
        rate: learning rate.
        weight: of the regulariser's mean, beside the output error relative to that of nearest rounding.
        warm: share of the steps without the regulariser.
        betas: exponent of the regulariser at its beginning and end.
    """

    steps: int = 200
    rate: float = 0.05
    weight: float = 0.5
    warm: float = 0.2
    betas: tuple[float, float] = (20.0, 2.0)
    uses_inputs = True

    def __call__(self, matrix: Tensor, grid: Grid, context: RoundingContext) -> QuantizedMatrix:
        """Return `matrix` (channels, fan_in) on `grid`; without a Hessian in the context: nearest.

        Raises:
            GridError: as `Grid.fit`.
            ModelError: the Hessian does not fit the matrix.
        """
        return _learned(matrix, grid, context, self._learn)

    def _learn(self, weights: Tensor, grid: Grid, scales: Scales, hessian: Tensor) -> tuple[Tensor, Scales]:
        low, high, fraction = neighbours(grid, grid.normalize(weights, scales))
        axis = Axis.of(grid, scales, weights.shape)
        v = _inverse_gate(fraction).requires_grad_()
        nearest = axis.values(torch.where(fraction > 0.5, high, low)) - weights
        unit = output_error(nearest, hessian).sum().clamp(min=1e-30)
        optimizer = torch.optim.Adam([v], lr=self.rate, foreach=False)
        for step in range(self.steps):
            optimizer.zero_grad()
            with torch.enable_grad():
                share = gate(v)
                error = axis.values(low + share * (high - low)) - weights
                loss = output_error(error, hessian).sum() / unit + self._regulariser(share, step)
                loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return torch.where(gate(v.detach()) > 0.5, high, low), scales

    def _regulariser(self, share: Tensor, step: int) -> Tensor:
        done = (step / self.steps - self.warm) / (1 - self.warm)
        if done < 0:
            return share.new_zeros(())
        beta = self.betas[1] + (self.betas[0] - self.betas[1]) * (1 - done)
        return self.weight * (1 - (2 * share - 1).abs().pow(beta)).mean()


@dataclass(frozen=True)
class SignRound:
    """SignRound with its settings.

    Attributes:
        steps: of sign descent; the learning rate falls from 1/steps to 0.
        shrink: the least factor of a scale.
    """

    steps: int = 200
    shrink: float = 0.5
    uses_inputs = True

    def __call__(self, matrix: Tensor, grid: Grid, context: RoundingContext) -> QuantizedMatrix:
        """Return `matrix` (channels, fan_in) on `grid`; without a Hessian in the context: nearest.

        Raises:
            GridError: as `Grid.fit`.
            ModelError: the Hessian does not fit the matrix.
        """
        return _learned(matrix, grid, context, self._learn)

    def _learn(self, weights: Tensor, grid: Grid, scales: Scales, hessian: Tensor) -> tuple[Tensor, Scales]:
        kind = SCALE_DTYPES[grid.scale_dtype]
        movable = kind.stored_as.is_floating_point and len(scales.scale) == len(weights)
        offset = torch.zeros_like(weights, requires_grad=True)
        factor = torch.ones_like(scales.scale, requires_grad=True)
        best = offset.detach().clone(), factor.detach().clone()
        least = torch.full_like(weights[:, 0], torch.inf)
        for step in range(self.steps):
            with torch.enable_grad():
                each = output_error(_rounded(weights, grid, scales, offset, factor) - weights, hessian)
                total = each.sum()
            now = each.detach() if movable else each.detach().sum().expand_as(least)
            better = (now < least)[:, None]
            best = torch.where(better, offset.detach(), best[0]), _rows(better, factor.detach(), best[1])
            least = torch.minimum(least, now)
            slopes = torch.autograd.grad(total, (offset, factor))
            rate = (1 - step / self.steps) / self.steps
            with torch.no_grad():
                offset.sub_(rate * slopes[0].sign()).clamp_(-0.5, 0.5)
                factor.sub_(rate * movable * slopes[1].sign()).clamp_(self.shrink, 1.0)
        final = Scales(kind.load(kind.store(scales.scale * best[1])), scales.zero) if movable else scales
        return grid.format.nearest(grid.normalize(weights, final) + best[0]), final


ROUNDINGS.register("adaround", AdaRound())
ROUNDINGS.register("signround", SignRound())


def _learned(matrix: Tensor, grid: Grid, context: RoundingContext, learn: Learn) -> QuantizedMatrix:
    """Fit scales, learn each group of channels, and keep the rows that beat nearest rounding."""
    if not grid.granularity.scaled or context.hessian is None:
        return grid.quantize(matrix)
    start = grid.fit(matrix, context.importance(matrix))
    found = []
    for weights, scales, hessian in context.groups(matrix, grid, start):
        weights, hessian = weights.float(), hessian.float()
        nearest = grid.format.nearest(grid.normalize(weights, scales))
        level, moved = learn(weights, grid, scales, hessian)
        errors = [
            output_error(Axis.of(grid, own, weights.shape).values(x) - weights, hessian)
            for x, own in ((level, moved), (nearest, scales))
        ]
        better = (errors[0] < errors[1])[:, None]
        found.append(
            (torch.where(better, level, nearest), Scales(_rows(better, moved.scale, scales.scale), scales.zero))
        )
    return assemble(grid, start, found)


def _rows(where: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Return `new` in the rows `where` (rows, 1); one value for all rows is never mixed."""
    return torch.where(where, new, old) if len(new) == len(where) else old


def _rounded(weights: Tensor, grid: Grid, scales: Scales, offset: Tensor, factor: Tensor) -> Tensor:
    """Return the weights after adding offsets and rounding, differentiable straight through."""
    scale = grid.granularity.expand(scales.scale * factor, weights.shape[1])
    zero = 0.0 if scales.zero is None else grid.granularity.expand(scales.zero, weights.shape[1]).float()
    x = torch.where(scale == 0, 0.0, weights / scale) + zero + offset
    level = x + (grid.format.nearest(x.detach()) - x).detach()
    return (level - zero) * scale


def neighbours(grid: Grid, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the levels below and above each x, and where x lies between them, in [0, 1].

    >>> [part.item() for part in neighbours(Grid.parse("int3"), torch.tensor([1.25]))]
    [1.0, 2.0, 0.25]
    """
    levels = grid.format.levels
    assert levels is not None
    levels = levels.to(x)
    x = x.clamp(levels[0], levels[-1])
    upper = torch.bucketize(x.contiguous(), levels).clamp_(min=1)
    low, high = levels[upper - 1], levels[upper]
    return low, high, (x - low) / (high - low)


def gate(v: Tensor) -> Tensor:
    """Return AdaRound's h(v) = clip(1.2 σ(v) − 0.1, 0, 1).

    >>> gate(torch.tensor([-9.0, 0.0, 9.0])).tolist()
    [0.0, 0.5, 1.0]
    """
    return (1.2 * v.sigmoid() - 0.1).clamp(0, 1)


def _inverse_gate(share: Tensor) -> Tensor:
    inner = (share.clamp(0.01, 0.99) + 0.1) / 1.2
    return torch.log(inner / (1 - inner))
