"""How many bits would each layer get if bits were not whole numbers?

With damages c_l * base**(-b_l) and sizes n_l, minimising their sum at a given average has a closed form: all
layers end with the same damage per weight times slope, so b_l is the average plus the centred
log_base(c_l / n_l). Damage near a minimum falls as 4**-b (rounding noise enters squared), hence base 4 and
the factor 1/2 in front of log2; the output norms of "Curvature-Guided Transformer Quantization" (see
docs/sources.md) fall as 2**-b, base 2. Bits may come out fractional, or negative where a layer hardly matters;
clipping them is not optimal any more.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from geoquant.arrays import Floats
from geoquant.errors import PlanError


def continuous_bits(c: npt.ArrayLike, n: npt.ArrayLike, average: float, base: float = 4.0) -> Floats:
    """Return the bits (n_sites,) that minimise sum_l c_l * base**(-b_l) at the given average.

    Args:
        c: (n_sites,) positive damage of each layer at 0 bits, in any unit: only ratios matter.
        n: (n_sites,) positive number of weights.
        average: bits per weight, sum(n * b) / sum(n).
        base: by which damage falls per bit.

    Equal sizes: a layer 16 times as sensitive as another gets two bits more.

    >>> continuous_bits([16.0, 1.0], [1, 1], 3.0).tolist()
    [4.0, 2.0]
    >>> continuous_bits([16.0, 1.0], [1, 1], 3.0, base=2.0).tolist()
    [5.0, 1.0]
    """
    damage, size = np.asarray(c, np.float64), np.asarray(n, np.float64)
    if damage.shape != size.shape or damage.ndim != 1 or not (damage > 0).all() or not (size > 0).all() or base <= 1:
        raise PlanError("continuous bits need positive c and n of the same length (layers,), and a base above 1")
    spread = np.log2(damage / size) / np.log2(base)
    return np.asarray(average + spread - np.average(spread, weights=size), np.float64)
