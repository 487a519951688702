"""Where do the random numbers of stochastic rounding come from, cheaply and again the same after a resume?

On a CPU drawing a uniform number costs more than everything else that rounding does, so a pool is drawn once and read
at random places: every single number is uniform, and two tensors see different pieces. Within one tensor numbers
repeat after at most a pool. On an accelerator fresh numbers are cheap. Either way a draw is a function of
(seed, counter) alone, so a checkpoint needs these two integers.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

POOL = 1 << 20
CHUNK = 1 << 17  # half a megabyte: the pool's piece, the tensor's and the result's stay in the cache
_MIX = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_WORD = (1 << 64) - 1


def scrambled(seed: int, counter: int) -> int:
    """Return 64 well-mixed bits of (seed, counter): splitmix64 (Steele, Lea, Flood 2014).

    >>> scrambled(0, 1) != scrambled(0, 2) != scrambled(1, 1)
    True
    """
    bits = (seed * _MIX[2] + (counter + 1) * _MIX[0]) & _WORD
    bits = ((bits ^ (bits >> 30)) * _MIX[1]) & _WORD
    bits = ((bits ^ (bits >> 27)) * _MIX[2]) & _WORD
    return bits ^ (bits >> 31)


@lru_cache(maxsize=4)
def _pool(seed: int) -> Tensor:
    # Midpoints of 2^−12, so that floor(level + draw) never reaches the level above an exact one in float32.
    draws = torch.randint(0, 1 << 12, (POOL,), generator=torch.Generator().manual_seed(seed))
    return draws.float().add_(0.5).mul_(2.0**-12)


class Noise:
    """A stream of uniform numbers strictly between 0 and 1.

    Attributes:
        seed: two streams of different seeds are unrelated.
        counter: how many pieces were drawn; set it back to draw the same again.

    >>> noise = Noise(3)
    >>> first = next(iter(noise.pieces(5, torch.device("cpu")))).clone()
    >>> noise.counter = 0
    >>> torch.equal(next(iter(noise.pieces(5, torch.device("cpu")))), first)
    True
    """

    def __init__(self, seed: int, counter: int = 0) -> None:
        self.seed, self.counter = seed, counter

    def pieces(self, count: int, device: torch.device) -> Iterator[Tensor]:
        """Yield flat float32 tensors of `CHUNK` numbers (the last of what is left), `count` in all; do not write."""
        if device.type != "cpu":
            self.counter += 1
            generator = torch.Generator(device).manual_seed(scrambled(self.seed, self.counter) >> 1)
            yield torch.rand(count, generator=generator, device=device).clamp_(2.0**-13, 1 - 2.0**-13)
            return
        pool = _pool(self.seed)
        for start in range(0, count, CHUNK):
            size = min(CHUNK, count - start)
            self.counter += 1
            offset = scrambled(self.seed, self.counter) % (POOL - size)
            yield pool[offset : offset + size]
