"""Which weights jump to and fro between two levels, and what stops them?

Near the middle between two levels a straight-through gradient points back as soon as the weight has crossed, so the
level oscillates however small the steps are: on ½(q − w*)² the share of steps on the upper level tends to
(w* − lower) / gap. Following Nagel et al. (arXiv:2203.11086) an oscillation is a change of level opposite to the change
before; its frequency is an exponential mean, f ← m·o + (1 − m)·f. A weight whose frequency passes a threshold is frozen
to the rounded running mean of its level; or all latent weights are pulled to their levels from the beginning
(dampening, `geoquant.grids.learned_step`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geoquant.grids import NumberFormat

MOMENTUM = 0.01
OSCILLATING = 0.005  # from this frequency on a weight counts as oscillating, as in the paper's tables


class Oscillation(nn.Module):
    """Watches the levels of one weight.

    Args:
        level: the levels at the beginning.
        momentum: m of the running means.

    Attributes:
        frequency: of oscillations per step, of the shape of the weight.
        frozen: which weights are held.
        held: at which levels.
        any_frozen: whether there is one.

    >>> watched = Oscillation(torch.zeros(2), momentum=0.5)
    >>> for level in ([0.0, 1.0], [0.0, 0.0], [1.0, 1.0]):
    ...     watched.note_(torch.tensor(level))
    >>> watched.frequency.tolist()  # the first moves once, the second turns back twice
    [0.0, 0.75]
    """

    frequency: Tensor
    frozen: Tensor
    held: Tensor
    _level: Tensor
    _direction: Tensor
    _mean: Tensor
    _seen: Tensor

    def __init__(self, level: Tensor, momentum: float = MOMENTUM) -> None:
        super().__init__()
        self._momentum = momentum
        self.any_frozen = False
        for name in ("_level", "held"):
            self.register_buffer(name, level.detach().clone())
        for name in ("frequency", "_direction", "_mean"):
            self.register_buffer(name, torch.zeros_like(level))
        self.register_buffer("_seen", torch.zeros((), dtype=torch.float64))
        self.register_buffer("frozen", torch.zeros_like(level, dtype=torch.bool))

    def loaded_(self) -> None:
        """Say that the buffers were written from outside."""
        self.any_frozen = bool(self.frozen.any())

    @torch.no_grad()
    def note_(self, level: Tensor) -> None:
        """Take in the levels of the next step."""
        direction = (level - self._level).sign_()
        moved = direction != 0
        self.frequency.lerp_((direction * self._direction == -1).to(level.dtype), self._momentum)
        self._direction.copy_(torch.where(moved, direction, self._direction))
        self._mean.lerp_(level, self._momentum)
        self._seen += 1
        self._level.copy_(level)

    @torch.no_grad()
    def freeze_(self, threshold: float, format: NumberFormat) -> None:
        """Hold every weight whose frequency exceeds `threshold` at the level nearest to its running mean."""
        found = (self.frequency > threshold) & ~self.frozen
        if bool(found.any()):
            # Without the division the mean would remember the zero that it began with.
            mean = self._mean / (1 - (1 - self._momentum) ** float(self._seen))
            self.held.copy_(torch.where(found, format.nearest(mean), self.held))
            self.frozen |= found
            self.any_frozen = True

    def oscillating(self) -> int:
        """Return how many weights oscillate and are not held."""
        return int(((self.frequency > OSCILLATING) & ~self.frozen).sum())
