"""How is a grid point chosen for each weight?

A rounding takes a matrix and a grid and returns a point of that grid. It may look at more than the weights: a
`RoundingContext` carries what is known of the layer's inputs, and the seed of whatever it draws. Which
rounding hurts a network least is measured elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from geoquant.grids import Grid, QuantizedMatrix
from geoquant.registry import Registry


@dataclass(frozen=True, eq=False)
class RoundingContext:
    """What a rounding may know besides the weights.

    Attributes:
        hessian: second moment of the layer's inputs, E[x xᵀ], (fan_in, fan_in); None when no data was seen.
        seed: for roundings that draw; the same seed gives the same result.
    """

    hessian: Tensor | None = None
    seed: int = 0

    def generator(self, device: torch.device) -> torch.Generator:
        """Return a fresh generator on `device`, seeded with `seed`."""
        return torch.Generator(device).manual_seed(self.seed)


class Rounding(Protocol):
    """Puts a matrix on a grid. Laws: the result lies on `grid`, has the shape of `matrix`, and is reproducible."""

    def __call__(self, matrix: Tensor, grid: Grid, context: RoundingContext) -> QuantizedMatrix:
        """Return `matrix` (channels, fan_in) rounded to `grid`.

        Raises:
            GridError: the grid cannot hold the matrix, as `Grid.fit` says.
        """
        ...


ROUNDINGS: Registry[Rounding] = Registry("rounding")
