"""How is batch norm written so that its second derivative is cheap?

In eval mode batch norm is one multiplication and one addition per channel. Autograd differentiates the fused
operation twice by way of its training formula, at several times the price; written out, a Hessian-vector
product of a ResNet is a seventh faster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class PlainBatchNorm(TorchFunctionMode):
    """While open, batch norm with running statistics is computed as scale·x + shift.

    >>> norm = torch.nn.BatchNorm1d(2).eval()
    >>> x = torch.tensor([[1.0, -2.0]])
    >>> with PlainBatchNorm():
    ...     y = norm(x)
    >>> torch.allclose(y, norm(x)), "Addcmul" in y.grad_fn.name()
    (True, True)
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            plain = _plain(*args, **kwargs)
            if plain is not None:
                return plain
        return func(*args, **kwargs)


def _plain(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    if training or running_mean is None or running_var is None:
        return None
    scale = (running_var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale if bias is None else torch.addcmul(bias, running_mean, scale, value=-1)
    shape = (1, -1, *[1] * (input.dim() - 2))
    return torch.addcmul(shift.view(shape), input, scale.view(shape))
