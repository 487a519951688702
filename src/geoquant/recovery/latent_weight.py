"""What stands behind a quantized weight while it is trained?

A latent float weight w and, where the step s is learned, its relative change. What the network multiplies is
s · (level nearest to w/s + zero, minus zero); gradients pass straight through (STE, arXiv:1308.3432) or reach the step
as well (LSQ, arXiv:1902.08153). It is a parametrization in torch's sense: the layer's parameter is the latent weight
under another name, so any optimizer, DDP, FSDP and any trainer treat it as they treat other parameters.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from geoquant.grids import SCALE_DTYPES, PerChannel, PerTensor, QuantizedMatrix, Scales, clip_limits
from geoquant.grids.learned_step import learned_step
from geoquant.models import Site
from geoquant.models.views import ROWS
from geoquant.recovery.oscillation import Oscillation
from geoquant.recovery.sharding import is_sharded, whole


class LatentWeight(nn.Module):
    """From a latent weight to the weight on its grid.

    Args:
        site: which weight.
        start: codes and scales of the beginning; the codes matter only to the caller.
        learn_step: whether the steps are parameters; scales that are powers of two stay in any case.

    Attributes:
        stretch: relative change of the steps, of the shape of the scales; None where they are fixed.
        oscillation: watches the levels; None until `watch_`.
        bypassed: whether the latent weight is passed on as it is.
        pull: weight of dampening.

    >>> from geoquant.grids import Grid
    >>> from geoquant.models import find_sites
    >>> layer = nn.Linear(4, 1, bias=False)
    >>> start = Grid.parse("int3:fp32").quantize(torch.tensor([[-4.0, 1.0, 2.0, 3.0]]))
    >>> latent = LatentWeight(find_sites(layer)[0], start, learn_step=False)
    >>> latent(torch.tensor([[-4.0, 0.4, 0.6, 3.0]])).tolist()
    [[-4.0, 0.0, 1.0, 3.0]]
    """

    scale: Tensor
    zero: Tensor | None

    def __init__(self, site: Site, start: QuantizedMatrix, learn_step: bool) -> None:
        super().__init__()
        self.site, self.grid = site, start.grid
        self.register_buffer("scale", start.scales.scale.clone())
        self.register_buffer("zero", None if start.scales.zero is None else start.scales.zero.float())
        movable = SCALE_DTYPES[self.grid.scale_dtype].stored_as.is_floating_point
        self.stretch = nn.Parameter(torch.zeros_like(self.scale)) if learn_step and movable else None
        limits = clip_limits(self.grid.format)
        assert limits is not None
        self._limits = limits
        self._factor = 1 / math.sqrt(site.weights / self.scale.numel() * _highest(start))
        self.oscillation: Oscillation | None = None
        self.bypassed = False
        self.pull = 0.0
        self._noting = False

    def steps(self) -> Tensor:
        """Return the steps as they are now, in weight units, of the shape of the scales.

        They are numbers that their dtype holds, so that training and validation see the model that is deployed;
        gradients pass that rounding straight through.
        """
        if self.stretch is None:
            return self.scale
        # It is sharded outside of a forward under FSDP.
        moved = self.scale * (1 + (whole(self.stretch) if is_sharded(self.stretch) else self.stretch))
        kind, now = SCALE_DTYPES[self.grid.scale_dtype], moved.detach()
        return kind.load(kind.store(now.clamp(-kind.largest, kind.largest))) + (moved - now)

    def watch_(self, latent: Tensor) -> None:
        """Track oscillations from now on."""
        self.oscillation = Oscillation(self.round(latent)[1])

    def note_(self, threshold: float | None = None) -> None:
        """Let the next forward take note of the levels, and hold weights that oscillate more than `threshold`.

        Levels are noted in the forward, where they are known in any case and in one piece under sharding too.
        """
        if self.oscillation is not None:
            self._noting = True
            if threshold is not None:
                self.oscillation.freeze_(threshold, self.grid.format)

    def forward(self, latent: Tensor) -> Tensor:
        """Return the weight on its grid."""
        if self.bypassed:
            return latent
        quantized, level = self.round(latent)
        if self._noting and self.oscillation is not None:
            self.oscillation.note_(level)
            self._noting = False
        return quantized

    def round(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weight on its grid and its levels, both of the shape of `latent`."""
        zero = None if self.zero is None else self.spread(self.zero)
        step, seen = self.spread(self.steps()), self.oscillation
        held = (seen.frozen, seen.held) if seen is not None and seen.any_frozen else None
        return learned_step(latent, step, zero, self.grid.format, self._limits, self._factor, held, self.pull)

    def spread(self, values: Tensor) -> Tensor:
        """Return values of the shape of the scales so that they broadcast against the weight."""
        simple = isinstance(self.grid.granularity, PerChannel | PerTensor) and self.site.view == ROWS
        if simple:
            return values.view(-1, *[1] * (len(self.site.shape) - 1))
        channels, fan_in = self.site.matrix_shape
        return self.site.restore(self.grid.granularity.expand(values, fan_in).expand(channels, fan_in))

    @torch.no_grad()
    def finish(self, latent: Tensor) -> QuantizedMatrix:
        """Return the codes of `latent` and the steps."""
        _, level = self.round(latent)
        zero = None if self.zero is None else self.zero.int()
        return QuantizedMatrix(self.grid, self.grid.format.encode(self.site.matrix(level)), Scales(self.steps(), zero))


def _highest(start: QuantizedMatrix) -> float:
    levels = start.grid.format.levels
    assert levels is not None
    return float(levels[-1])
