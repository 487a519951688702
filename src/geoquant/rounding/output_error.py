"""How much does a rounding change what the layer gives?

With H = E[x xᵀ], an error E of the matrix costs tr(E H Eᵀ) at the layer's output, on average over the calibration
data: exactly the mean squared error of the output, in one small matrix instead of all the data.
"""

from __future__ import annotations

from torch import Tensor


def output_error(error: Tensor, hessian: Tensor) -> Tensor:
    """Return e H eᵀ of each row of `error` (rows, fan_in); `hessian` is (fan_in, fan_in).

    >>> import torch
    >>> output_error(torch.tensor([[1.0, -1.0], [1.0, 0.0]]), torch.tensor([[2.0, 1.0], [1.0, 2.0]])).tolist()
    [2.0, 2.0]
    """
    return ((error @ hessian) * error).sum(1)
