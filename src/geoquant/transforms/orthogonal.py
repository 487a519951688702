"""Which orthogonal matrix spreads one large entry evenly over all?

A Sylvester Hadamard matrix does so perfectly where the size is a power of two; its other sizes d = 2^k · m take the
Kronecker product with the discrete cosine basis of the odd part m, whose entries are at most √(2/m). Random signs
before it keep structured vectors from meeting a row they resemble (QuIP#, Tseng et al., arXiv:2402.04396).
"""

from __future__ import annotations

import numpy as np
import scipy.fft
import scipy.linalg
import torch
from torch import Tensor

from geoquant.errors import GeoquantError


def random_hadamard(size: int, seed: int = 0) -> Tensor:
    """Return a random orthogonal matrix (size, size) float64 with entries of at most √(2/size).

    Raises:
        GeoquantError: the size is not positive.

    >>> random_hadamard(4).abs()[0].tolist()
    [0.5, 0.5, 0.5, 0.5]
    >>> q = random_hadamard(12)
    >>> torch.allclose(q @ q.T, torch.eye(12, dtype=q.dtype)), bool(q.abs().max() <= (2 / 12) ** 0.5)
    (True, True)
    """
    if size < 1:
        raise GeoquantError(f"a rotation needs a size of at least 1, got {size}")
    power = size & -size
    even = scipy.linalg.hadamard(power) / np.sqrt(power)
    odd = np.ones((1, 1)) if size == power else scipy.fft.dct(np.eye(size // power), norm="ortho", axis=0)
    signs = torch.randint(0, 2, (size,), generator=torch.Generator().manual_seed(seed)).double() * 2 - 1
    return signs[:, None] * torch.from_numpy(np.kron(even, odd))
