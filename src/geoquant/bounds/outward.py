"""How far can floating-point arithmetic be from the real numbers it stands for?

The standard model: a computed sum of products of n terms, in any order, with or without fused multiply-add, is within
γ_n · Σ|terms| of the exact one, γ_n = n·u / (1 − n·u), u = 2⁻⁵³ in float64 and 2⁻²⁴ in float32. Bounds add that
much to what they report, so rounding can only loosen them. Source: N. J. Higham, "Accuracy and Stability of Numerical
Algorithms", 2nd edition, section 3.1.

Where the answer stops: it holds for sums computed term by term in the stated format. TF32, bfloat16 accumulation,
Winograd and FFT convolutions are outside it.
"""

from __future__ import annotations

from torch import Tensor

from geoquant.errors import GeoquantError

UNIT_FLOAT64 = 2.0**-53
UNIT_FLOAT32 = 2.0**-24
# Products of subnormal numbers lose absolute, not relative, accuracy; this dwarfs any number of such losses here.
_UNDERFLOW = 1e-290


def gamma(terms: int, unit: float = UNIT_FLOAT64) -> float:
    """Return γ_n = n·u/(1 − n·u), the relative error bound of a sum of `terms` rounded products.

    Raises:
        GeoquantError: so many terms that the model says nothing (n·u ≥ 1).

    >>> gamma(2, 0.125)
    0.3333333333333333
    """
    if terms * unit >= 1:
        raise GeoquantError(f"a sum of {terms} terms has no error bound at unit roundoff {unit}")
    return terms * unit / (1 - terms * unit)


def raised(value: Tensor, terms: int) -> Tensor:
    """Return an upper bound of the exact value behind `value` ≥ 0, computed in float64 from sums of `terms` terms.

    >>> import torch
    >>> tenth = torch.tensor([0.1] * 10, dtype=torch.float64)
    >>> bool(raised(tenth.sum(), 10) > 1.0)
    True
    """
    return value * (1 + 2 * gamma(terms + 2)) + _UNDERFLOW
