"""How does one tensor after another get onto an activation grid, once its scale is known or while it is learned?

The rounding is simulated in float, with a straight-through gradient. Who hands the tensors over, and where scales come
from, is decided elsewhere (`geoquant.models.entering`, `geoquant.geometry.clipping`).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from geoquant.grids.activation import ActivationGrid, ActivationScale

NOT_SEEN = ActivationScale(0.0)


class ActivationQuantizer(nn.Module):
    """Rounds tensors to an activation grid; passes them on while a static scale is not known.

    Attributes:
        grid: where to.
        scale: static scale; `NOT_SEEN` before calibration, where nothing arrived, or nothing but zeros.
        by_sample: whether a token is a whole sample, as for convolutions.
        stretch: while the scale is being learned, what it moves by: scale · (1 + stretch). None otherwise.

    >>> quantizer = ActivationQuantizer(ActivationGrid.parse("int2:affine:dynamic"))
    >>> import torch
    >>> quantizer(torch.tensor([0.0, 0.8, 3.0])).tolist()
    [0.0, 1.0, 3.0]
    """

    def __init__(
        self, grid: ActivationGrid, scale: ActivationScale = NOT_SEEN, by_sample: bool = False, name: str = ""
    ) -> None:
        super().__init__()
        self.grid, self.scale, self.by_sample, self.name = grid, scale, by_sample, name
        self.stretch: nn.Parameter | None = None

    def forward(self, *values: Tensor) -> Any:
        """Return the rounded tensor, or a tuple of them; tensors of integers are returned as they came."""
        rounded = tuple(self._round(each) for each in values)
        return rounded[0] if len(rounded) == 1 else rounded

    def _round(self, values: Tensor) -> Tensor:
        if not values.is_floating_point() or values.numel() == 0:
            return values
        if self.grid.dynamic:
            return self.grid.quantize_dynamically(values, self.by_sample)
        if self.scale.scale == 0:
            return values
        if self.stretch is not None:
            scale = self.scale.scale * (1 + self.stretch)
            return self.grid.quantize_learnably(values, scale, self.scale.zero, self._factor(values))
        return self.grid.quantize(values, self.scale)

    def _factor(self, values: Tensor) -> float:
        """Return LSQ's 1/√(features · highest level)."""
        levels = self.grid.format.levels
        assert levels is not None
        features = math.prod(values.shape[1:])
        return 1 / math.sqrt(features * float(levels[-1]))

    def start_learning_(self, device: torch.device) -> nn.Parameter | None:
        """Make the scale learnable from now on; None where there is no static scale."""
        if not self.grid.dynamic and self.scale.scale != 0:
            self.stretch = nn.Parameter(torch.zeros(1, device=device))
        return self.stretch

    def moved(self, stretch: Tensor) -> ActivationScale:
        """Return the scale moved by `stretch` (1,), as a float32."""
        return replace(self.scale, scale=float(self.scale.scale * (1 + stretch.detach().clamp(min=-0.9))))

    def stop_learning_(self) -> None:
        """Hold the scale where it is now."""
        if self.stretch is not None:
            self.scale, self.stretch = self.moved(self.stretch), None
