"""What does an optimizer keep between steps, and in how many bits?

After each step the optimizer's tensors (momentum, moments) and the stored weights are put back onto a grid of few bits,
in place, so that whatever optimizer it is goes on with what such storage would hold. Stochastic rounding moves weights
on average by the right amount even where a step is shorter than half a gap (the dead zone of nearest rounding, see
`geoquant.bounds.dead_zone`); error feedback keeps what rounding took away and adds it before the next one, at the price
of keeping it.

A second moment is rounded up, in the square root, and never to zero: Adam divides by it.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from geoquant.training.noise import Noise
from geoquant.training.numerics import Rounding, level, round_rows
from geoquant.training.precision import LayerPrecision

Update = Literal["nearest", "stochastic", "feedback"]
FEEDBACK = "geoquant_feedback"
_SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg")


def local(tensor: Tensor) -> Tensor:
    """Return the part of a sharded tensor that lies on this rank; any other tensor as it is."""
    found: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return found


@torch.no_grad()
def round_state_(
    weight: Tensor, state: dict[str, Any], precision: LayerPrecision, update: Update, noise: Noise
) -> None:
    """Put the optimizer's `state` of `weight`, and `weight` itself, onto the grids of `precision`, in place.

    Args:
        weight: a parameter (rows, ...).
        state: what the optimizer keeps for it; tensors of the weight's shape are rounded, others left alone.
        precision: says the grids (`state`, `stored`).
        update: how stored weights are rounded; state is rounded stochastically unless this is ``nearest``.
        noise: the same on every rank that holds the same part.

    >>> weight = torch.tensor([[0.0, 1.0, 0.30]])
    >>> round_state_(weight, {}, LayerPrecision(stored="int2"), "feedback", Noise(0))
    >>> weight
    tensor([[0., 1., 0.]])
    """
    kept = level(precision.state)
    how: Rounding = "nearest" if update == "nearest" else "stochastic"
    if not kept.exact:
        for name, tensor in state.items():
            if not isinstance(tensor, Tensor) or tensor.shape != weight.shape or name == FEEDBACK:
                continue
            mine = local(tensor)
            if name in _SQUARES:
                mine.copy_(_rounded_square(mine, precision.state))
            else:
                mine.copy_(round_rows(mine, kept, how, noise))
    stored = level(precision.stored)
    if stored.exact:
        return
    mine = local(weight)
    if update == "feedback":
        wanted = mine + local(state[FEEDBACK]) if FEEDBACK in state else mine.clone()
        mine.copy_(round_rows(wanted, stored, "nearest", noise))
        state[FEEDBACK] = wanted.sub_(mine)
    else:
        mine.copy_(round_rows(mine, stored, how, noise))


def _rounded_square(square: Tensor, name: str) -> Tensor:
    """Round the root of a second moment up to the next level of its row, to the first level at least."""
    to, root = level(name), square.sqrt()
    if not to.top:
        found = round_rows(root, to, "nearest", Noise(0))
        return torch.where(found == 0, root, found).square()
    step = root.flatten(1).amax(1) if root.dim() > 1 else root.amax()
    step = (step / (2 * to.top + 1)).view(-1, *[1] * (root.dim() - 1))
    codes = (root / torch.where(step == 0, torch.inf, step)).mul_(1 - 1e-6).ceil_().clamp_(min=1)
    return (codes * step).square()


def state_bits(state: dict[str, Any], weight: Tensor, precision: LayerPrecision) -> int:
    """Return how many bits the weight and its optimizer state take between steps, scales left out.

    >>> state_bits({"momentum_buffer": torch.zeros(2, 3)}, torch.zeros(2, 3), LayerPrecision(state="int8"))
    240
    """
    tensors = [t for name, t in state.items() if isinstance(t, Tensor) and t.shape == weight.shape and name != FEEDBACK]
    residual = 32 * weight.numel() if FEEDBACK in state else 0
    each = level(precision.state).bits * len(tensors) + level(precision.stored).bits
    return each * weight.numel() + residual


def flops_per_weight(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> int:
    """Return the floating-point operations that one update spends on one weight.

    Additions, multiplications, divisions and roots of the textbook update: SGD 2 (4 with momentum), Adam 12, AdamW 14;
    other optimizers count as Adam.
    """
    kind = type(optimizer).__name__
    if kind == "SGD":
        return 4 if group.get("momentum") else 2
    return 14 if kind == "AdamW" else 12
