"""Can the scale of a norm live in the layers that read it?

LayerNorm and RMSNorm end in y = γ·n + β per channel. Layers that read nothing but y take γ into their columns, W ← W·γ,
and β into their biases, b ← b + W·β; the norm keeps γ = 1 and β = 0. Exact, up to rounding of the parameters. Where a
reader has no bias the shift stays in the norm, as β/γ: a new bias would change what the model stores. Rotations need
norms without a scale; by itself this helps where γ is uneven and the columns make up for it, and hurts where not.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from geoquant.transforms.carrying import VIEWS
from geoquant.transforms.groups import Group, find_groups, is_scalable_norm
from geoquant.transforms.protocol import TRANSFORMS, Applied, Skipped, TransformContext, TransformReport
from geoquant.transforms.recording import Flow, record
from geoquant.transforms.scaling import (
    add_to_bias_,
    norm_offset,
    norm_scale,
    parameters_of,
    scale_inputs_,
    set_,
)


class Absorb:
    """Scales of norms absorbed into the layers behind them."""

    def __call__(self, model: nn.Module, context: TransformContext) -> TransformReport:
        """Rewrite every norm whose readers are layers and nothing else."""
        applied, skipped = absorb_norms_(model, record(model, context.batches[0], context.forward))
        return TransformReport("absorb", tuple(applied), tuple(skipped))


TRANSFORMS.register("absorb", Absorb())


def absorb_norms_(
    model: nn.Module, flow: Flow, wanted: Callable[[nn.Module], bool] = is_scalable_norm
) -> tuple[list[Applied], list[Skipped]]:
    """Absorb the `wanted` norms of `model`; `flow` is a recording of it."""
    groups, skipped = find_groups(model, flow, wanted, VIEWS)
    applied = []
    for group in groups:
        without = [reader.name for reader in group.readers if "bias" not in parameters_of(reader.module)]
        if not bool(group.free.all()):
            skipped.append(Skipped(group.name, group.note or "not all of its channels are read by layers"))
        elif is_neutral(group.module, shift=not without):
            skipped.append(Skipped(group.name, "its scale is 1 already"))
        else:
            shifted = _shift(group.module) is not None
            _absorb_(group, with_shift=not without)
            note = f"its shift stays: '{without[0]}' has no bias" if shifted and without else ""
            applied.append(Applied(group.name, group.targets, note))
    return applied, skipped


def is_neutral(norm: nn.Module, shift: bool = True) -> bool:
    """Whether a norm multiplies by 1 and, if `shift` is asked for, adds 0.

    >>> is_neutral(nn.LayerNorm(2)), is_neutral(nn.LayerNorm(2, elementwise_affine=False))
    (True, True)
    """
    offset = norm_offset(norm)
    scaled = offset is not None and bool((norm_scale(norm, offset) != 1).any())
    return not scaled and not (shift and _shift(norm) is not None)


def _shift(norm: nn.Module) -> Tensor | None:
    """Return what a norm adds, float64; None where that is nothing."""
    bias = parameters_of(norm).get("bias")
    return None if bias is None or not bool(bias.any()) else bias.detach().double().cpu()


def _absorb_(group: Group, with_shift: bool) -> None:
    """Move the scale, and the shift if asked for; a shift that stays is divided by the scale where that is not 0."""
    offset, shift = norm_offset(group.module), _shift(group.module)
    assert offset is not None
    own, scale = parameters_of(group.module), norm_scale(group.module, offset).cpu()
    if shift is None or with_shift:
        for reader in group.readers:
            if shift is not None:
                add_to_bias_(reader.module, shift[reader.columns])
            scale_inputs_(reader.module, scale[reader.columns])
        set_(own["weight"], torch.full_like(own["weight"], 1 - offset))
        if shift is not None:
            set_(own["bias"], torch.zeros_like(own["bias"]))
    else:
        group.scale_(scale)
        set_(own["weight"], torch.where(own["weight"] + offset == 0, own["weight"], 1 - offset))
