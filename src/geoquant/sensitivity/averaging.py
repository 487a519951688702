"""What is the mean over samples, and how well is it known?

Predictors keep one number per sample, site and grid. Predictions inside one sample are correlated, so the
standard error is over samples; what other calibration data would say is part of it, a wrong model is not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from geoquant.arrays import Floats


def sample_mean(
    values: Floats | Sequence[Floats], weights: Floats | Sequence[float] | None = None
) -> tuple[Floats, Floats]:
    """Return Σ values / Σ weights over the first axis, and the standard error of that ratio.

    Args:
        values: (samples, ...), a total per sample; a list of such parts is joined first.
        weights: (samples,), such as the predictions in each sample; 1 when None.

    Returns:
        mean and standard error, both (...); the error is 0 for a single sample, whose spread nobody knows.

    >>> mean, stderr = sample_mean(np.array([1.0, 3.0]))
    >>> float(mean), float(stderr)
    (2.0, 1.0)
    """
    joined = np.concatenate([np.asarray(part, float) for part in values]) if isinstance(values, list) else values
    joined = np.asarray(joined, float)
    share = np.ones(len(joined)) if weights is None else np.asarray(weights, float)
    share = share.reshape(-1, *[1] * (joined.ndim - 1))
    total = share.sum()
    mean = joined.sum(0) / total
    if len(joined) < 2:
        return mean, np.zeros_like(mean)
    spread = np.square(joined - mean * share).sum(0)
    return mean, np.sqrt(spread * len(joined) / (len(joined) - 1)) / total


def rising(change: Floats, errors: Floats) -> Floats:
    """Return the nearest values (least squares) that never fall as `errors` rises: pool adjacent violators.

    >>> rising(np.array([3.0, 5.0, 1.0]), np.array([0.9, 0.2, 0.1])).tolist()
    [4.0, 4.0, 1.0]
    """
    pools: list[list[int]] = []
    for place in np.lexsort((change, errors)).tolist():
        pools.append([place])
        while len(pools) > 1 and change[pools[-2]].mean() > change[pools[-1]].mean():
            pools[-2:] = [pools[-2] + pools[-1]]
    found = np.empty_like(change)
    for pool in pools:
        found[pool] = change[pool].mean()
    return found
