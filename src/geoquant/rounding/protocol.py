"""How is a grid point chosen for each weight?

A rounding takes a matrix and a grid and returns a point of that grid. It may look at more than the weights: a
`RoundingContext` carries what is known of the layer's inputs, and the seed of whatever it draws. Which
rounding hurts a network least is measured elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from geoquant.errors import ModelError
from geoquant.grids import Grid, QuantizedMatrix, Scales
from geoquant.registry import Registry


@dataclass(frozen=True, eq=False)
class RoundingContext:
    """What a rounding may know besides the weights.

    Attributes:
        hessian: second moment of the layer's inputs, E[x xᵀ], (fan_in, fan_in); or (groups, fan_in, fan_in) where
            the channels are split evenly, in order, among groups that see different inputs (grouped
            convolutions); None when no data was seen.
        seed: for roundings that draw; the same seed gives the same result.
    """

    hessian: Tensor | None = None
    seed: int = 0

    def generator(self, device: torch.device) -> torch.Generator:
        """Return a fresh generator on `device`, seeded with `seed`."""
        return torch.Generator(device).manual_seed(self.seed)

    def importance(self, matrix: Tensor) -> Tensor | None:
        """Return the mean squares of the inputs as weights of squared errors, (channels, fan_in); None without data.

        >>> context = RoundingContext(torch.stack([torch.eye(2), 3 * torch.eye(2)]))
        >>> context.importance(torch.zeros(4, 2))[:, 0].tolist()
        [1.0, 1.0, 3.0, 3.0]
        """
        if self.hessian is None:
            return None
        hessian = self._stacked(matrix)
        diagonal = hessian.diagonal(dim1=1, dim2=2).clamp(min=0).float()
        return diagonal.repeat_interleave(len(matrix) // len(hessian), 0)

    def groups(self, matrix: Tensor, grid: Grid, scales: Scales) -> Iterator[tuple[Tensor, Scales, Tensor]]:
        """Yield (rows of the matrix, their scales, their Hessian) for each group of channels."""
        hessian = self._stacked(matrix)
        size = len(matrix) // len(hessian)
        for index, part in enumerate(hessian):
            rows = slice(index * size, (index + 1) * size)
            yield matrix.detach()[rows], scales[rows], part

    def _stacked(self, matrix: Tensor) -> Tensor:
        assert self.hessian is not None
        hessian = self.hessian if self.hessian.dim() == 3 else self.hessian[None]
        channels, fan_in = matrix.shape
        if hessian.shape[1:] != (fan_in, fan_in) or channels % len(hessian):
            raise ModelError(
                f"a Hessian of shape {tuple(self.hessian.shape)} does not fit weights of shape {tuple(matrix.shape)}; "
                "expected (fan_in, fan_in), or one such for each of several equal groups of channels"
            )
        return hessian


class Rounding(Protocol):
    """Puts a matrix on a grid. Laws: the result lies on `grid`, has the shape of `matrix`, and is reproducible.

    A rounding that gains from the inputs' second moments says so with an attribute ``uses_inputs = True``.
    """

    def __call__(self, matrix: Tensor, grid: Grid, context: RoundingContext) -> QuantizedMatrix:
        """Return `matrix` (channels, fan_in) rounded to `grid`.

        Raises:
            GridError: the grid cannot hold the matrix, as `Grid.fit` says.
        """
        ...


ROUNDINGS: Registry[Rounding] = Registry("rounding")


def uses_inputs(rounding: Rounding) -> bool:
    """Whether `rounding` looks at the inputs' second moments, and so needs calibration data."""
    return bool(getattr(rounding, "uses_inputs", False))
