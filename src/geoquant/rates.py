"""How a learning rate rises and falls over a run, as a share of its peak: what everything here that trains shares."""

from __future__ import annotations

import math

_RISE, _START = 0.3, 1 / 25  # of one cycle, as in torch's OneCycleLR


def half_cosine(done: float) -> float:
    """Fall from 1 to 0, gently at both ends.

    >>> half_cosine(0), half_cosine(0.5), half_cosine(1)
    (1.0, 0.5, 0.0)
    """
    return 0.5 * (1 + math.cos(math.pi * done))


def warm(step: int, total: int, warmup: float) -> float:
    """Rise in a straight line to 1 over a share `warmup` of the `total` steps, and stay there.

    >>> [warm(step, 10, 0.4) for step in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    return min(1.0, (step + 1) / (warmup * total)) if warmup else 1.0


def one_cycle(step: int, total: int) -> float:
    """Rise from 1/25 over 30 % of the run, fall to nothing after; both as half cosines.

    >>> one_cycle(0, 100), one_cycle(30, 100), round(one_cycle(99, 100), 3)
    (0.04, 1.0, 0.001)
    """
    done = step / total
    if done < _RISE:
        return _START + (1 - _START) * (1 - half_cosine(done / _RISE))
    return half_cosine((done - _RISE) / (1 - _RISE))
