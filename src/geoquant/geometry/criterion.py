"""Which loss is studied? Losses as functions of the outputs, with the square root of their Hessian.

Each criterion is a sum over predictions (an image, a token) of a convex function of one row of outputs.
What the geometry needs beside the value is the residual r = ∂loss/∂z and a factor S with SSᵀ = ∂²loss/∂z²:
the Gauss-Newton matrix is JᵀSSᵀJ, and the rest of the Hessian is Σ r_c ∇²z_c.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from geoquant.errors import DataError
from geoquant.registry import Registry

IGNORED = -100


class Criterion(Protocol):
    """A convex loss of one row of outputs; all methods take and return one row per prediction."""

    name: str

    def mask(self, outputs: Tensor, targets: Tensor | None) -> Tensor:
        """Return (rows,) booleans: which predictions count. Raise `DataError` when the targets do not fit."""
        ...

    def values(self, outputs: Tensor, targets: Tensor | None) -> Tensor:
        """Return the loss of each row, (rows,), differentiable in `outputs` (rows, classes)."""
        ...

    def residual(self, outputs: Tensor, targets: Tensor | None) -> Tensor:
        """Return ∂loss/∂z, (rows, classes)."""
        ...

    def half(self, outputs: Tensor, directions: Tensor) -> Tensor:
        """Return S·ε for each row, where SSᵀ is the Hessian of the loss in the outputs; (rows, classes)."""
        ...

    def hessian(self, outputs: Tensor, directions: Tensor) -> Tensor:
        """Return SSᵀ·u for each row; (rows, classes)."""
        ...


def softmax_half(outputs: Tensor, directions: Tensor) -> Tensor:
    """Multiply by S = diag(√p) − p√pᵀ, whose SSᵀ is diag(p) − ppᵀ with p = softmax(outputs).

    Args:
        outputs: logits, (rows, classes).
        directions: (rows, classes).

    >>> softmax_half(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))
    tensor([[ 0.3536, -0.3536]])
    """
    p = outputs.softmax(-1)
    root = p.sqrt()
    return root * directions - p * (root * directions).sum(-1, keepdim=True)


def softmax_hessian(outputs: Tensor, directions: Tensor) -> Tensor:
    """Multiply by diag(p) − ppᵀ, p = softmax(outputs), the Hessian of cross-entropy in the logits."""
    weighted = outputs.softmax(-1) * directions
    return weighted - outputs.softmax(-1) * weighted.sum(-1, keepdim=True)


class CrossEntropy:
    """Negative log-probability of the target class, nats per prediction; targets of −100 do not count."""

    name = "cross_entropy"

    def mask(self, outputs: Tensor, targets: Tensor | None) -> Tensor:
        """See `Criterion`."""
        if targets is None:
            raise DataError("cross-entropy needs targets; give (inputs, targets) pairs, or use loss='kl'")
        if targets.is_floating_point() or targets.numel() != outputs.shape[0]:
            raise DataError(
                f"cross-entropy needs one integer class per prediction: got targets of shape {tuple(targets.shape)} "
                f"and type {targets.dtype} for {outputs.shape[0]} predictions"
            )
        return targets.flatten() != IGNORED

    def values(self, outputs: Tensor, targets: Tensor | None) -> Tensor:
        """See `Criterion`."""
        assert targets is not None
        return F.cross_entropy(outputs, targets.flatten(), ignore_index=IGNORED, reduction="none")

    def residual(self, outputs: Tensor, targets: Tensor | None) -> Tensor:
        """See `Criterion`."""
        assert targets is not None
        hit = F.one_hot(targets.flatten().clamp(min=0), outputs.shape[-1])
        return outputs.softmax(-1) - hit

    def half(self, outputs: Tensor, directions: Tensor) -> Tensor:
        """See `Criterion`."""
        return softmax_half(outputs, directions)

    def hessian(self, outputs: Tensor, directions: Tensor) -> Tensor:
        """See `Criterion`."""
        return softmax_hessian(outputs, directions)


class SelfDivergence:
    """KL divergence from the model's own present predictions, nats per prediction; needs no targets.

    It is zero here, with zero gradient in the outputs, so its Hessian is exactly its Gauss-Newton matrix
    (the Fisher information of the model's predictions).
    """

    name = "kl"

    def mask(self, outputs: Tensor, targets: Tensor | None) -> Tensor:
        """See `Criterion`."""
        keep = torch.ones(outputs.shape[0], dtype=torch.bool, device=outputs.device)
        usable = targets is not None and not targets.is_floating_point() and targets.numel() == keep.numel()
        return targets.flatten() != IGNORED if targets is not None and usable else keep

    def values(self, outputs: Tensor, targets: Tensor | None) -> Tensor:
        """See `Criterion`."""
        now = outputs.detach().log_softmax(-1)
        return (now.exp() * (now - outputs.log_softmax(-1))).sum(-1)

    def residual(self, outputs: Tensor, targets: Tensor | None) -> Tensor:
        """See `Criterion`."""
        return torch.zeros_like(outputs)

    def half(self, outputs: Tensor, directions: Tensor) -> Tensor:
        """See `Criterion`."""
        return softmax_half(outputs, directions)

    def hessian(self, outputs: Tensor, directions: Tensor) -> Tensor:
        """See `Criterion`."""
        return softmax_hessian(outputs, directions)


class SquaredError:
    """½‖z − t‖² per prediction, for regression; targets have the shape of the outputs."""

    name = "squared_error"

    def mask(self, outputs: Tensor, targets: Tensor | None) -> Tensor:
        """See `Criterion`."""
        if targets is None or targets.numel() != outputs.numel():
            got = "none" if targets is None else f"shape {tuple(targets.shape)}"
            raise DataError(f"squared error needs a target for each of {outputs.numel()} outputs, got {got}")
        return torch.ones(outputs.shape[0], dtype=torch.bool, device=outputs.device)

    def values(self, outputs: Tensor, targets: Tensor | None) -> Tensor:
        """See `Criterion`."""
        return self.residual(outputs, targets).square().sum(-1) / 2

    def residual(self, outputs: Tensor, targets: Tensor | None) -> Tensor:
        """See `Criterion`."""
        assert targets is not None
        return outputs - targets.reshape(outputs.shape)

    def half(self, outputs: Tensor, directions: Tensor) -> Tensor:
        """See `Criterion`."""
        return directions

    def hessian(self, outputs: Tensor, directions: Tensor) -> Tensor:
        """See `Criterion`."""
        return directions


CRITERIA: Registry[Criterion] = Registry("loss")
for _criterion in (CrossEntropy(), SelfDivergence(), SquaredError()):
    CRITERIA.register(_criterion.name, _criterion)
