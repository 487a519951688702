"""Do two layers in a row have channels of one range, so that one scale for all of them wastes nothing?

Cross-layer equalisation (Nagel et al., arXiv:1906.04721): where a positively homogeneous function stands between two
layers, channel j may be divided by s_j on the way out and multiplied by it on the way in. s_j = √(r_j / c_j), with r_j
and c_j the largest weights of the row that makes channel j and of the columns that read it, gives both the same
range. A batch norm between them takes the division into its own scale and shift; r_j is then the row's range as it
would be after folding.

With a plan it is done where it helps: of the strengths s^t, t = 0 … 1, each pair takes the one of least estimated
error of the readers' outputs, from the weights' errors under the second moment of their inputs, the source's errors
as the readers' columns pass them on, and the rounding of the inputs where the plan asks for it. That estimate adds
errors as if they were independent and takes the function between for the identity. Without a plan t = 1, as in the
paper, until nothing moves.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from geoquant.models import get_weight
from geoquant.plan import Plan
from geoquant.progress import task
from geoquant.rounding import ROUNDINGS
from geoquant.transforms.carrying import HOMOGENEOUS
from geoquant.transforms.errors import input_noise, site_of, weight_error
from geoquant.transforms.groups import Group, find_groups
from geoquant.transforms.protocol import TRANSFORMS, Applied, Skipped, TransformContext, TransformReport
from geoquant.transforms.recording import Flow, record
from geoquant.transforms.scaling import (
    column_energy,
    column_reach,
    input_factor,
    is_layer,
    norm_scale,
    output_factor,
    row_reach,
)
from geoquant.transforms.statistics import Inputs, measure_inputs

_STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
_SETTLED = 1e-3
_SWEEPS = 30


class Equalize:
    """Cross-layer equalisation."""

    def __call__(self, model: nn.Module, context: TransformContext) -> TransformReport:
        """Rewrite every layer, or batch norm behind one, whose readers take a factor per channel."""
        flow = record(model, context.batches[0], context.forward)
        groups, skipped = find_groups(model, flow, _is_source, HOMOGENEOUS)
        makers = {group.name: _maker(group, flow) for group in groups}
        skipped += [Skipped(name, "no layer comes right before it") for name, maker in makers.items() if not maker]
        pairs = [(group, maker) for group in groups if (maker := makers[group.name]) is not None]
        if context.plan is None:
            applied = _settle(pairs)
        else:
            applied, left = _where_it_helps(pairs, context.plan, model, context)
            skipped += left
        return TransformReport("equalize", tuple(applied), tuple(skipped))


TRANSFORMS.register("equalize", Equalize())

_Pair = tuple[Group, nn.Module]


def _is_source(module: nn.Module) -> bool:
    return is_layer(module) or isinstance(module, _BatchNorm)


def _maker(group: Group, flow: Flow) -> nn.Module | None:
    """Return the layer whose rows make the channels: the source, or what comes right before a batch norm."""
    if is_layer(group.module):
        return group.module
    step = flow.made_by(flow.call_of(group.module).inputs[0])
    return step.module if step is not None and step.module is not None and is_layer(step.module) else None


def _factor(group: Group, maker: nn.Module) -> Tensor:
    """Return √(r / c) of each channel, 1 where one of both is zero."""
    rows = row_reach(maker).cpu()
    if isinstance(group.module, _BatchNorm):
        variance = group.module.running_var
        spread = 1.0 if variance is None else (variance.double() + group.module.eps).sqrt().cpu()
        rows = rows * norm_scale(group.module, 0.0).abs().cpu() / spread
    columns = torch.zeros_like(rows)
    for reader in group.readers:
        columns = torch.maximum(columns, reader.of_channels(column_reach(reader.module).cpu(), len(rows)))
    return group.held(torch.where((rows > 0) & (columns > 0), (rows / columns).sqrt(), 1.0))


def _settle(pairs: list[_Pair]) -> list[Applied]:
    """Equalise all pairs until nothing moves: a layer in the middle belongs to two of them."""
    for _ in range(_SWEEPS):
        moved = 0.0
        for group, maker in pairs:
            factor = _factor(group, maker)
            group.scale_(factor)
            moved = max(moved, float(factor.log().abs().max()))
        if moved < _SETTLED:
            break
    return [Applied(group.name, group.targets, _some(group)) for group, _ in pairs]


def _where_it_helps(
    pairs: list[_Pair], plan: Plan, model: nn.Module, context: TransformContext
) -> tuple[list[Applied], list[Skipped]]:
    applied, skipped = [], []
    names = dict.fromkeys(name for group, _ in pairs for name in (group.name, *group.targets))
    layers = [name for name in names if is_layer(model.get_submodule(name))]
    seen = measure_inputs(model, layers, context.batches, context.forward, moments=True, values=True)
    with task("equalizing", len(pairs)) as advance:
        for group, maker in pairs:
            whole = _factor(group, maker)
            costs = {t: _cost(group, whole**t, plan, model, seen) for t in _STRENGTHS}
            best = min(costs, key=lambda t: (costs[t], t))
            if best == 0 or costs[best] >= costs[0.0]:
                skipped.append(Skipped(group.name, "equalising does not lower the estimated error"))
            else:
                group.scale_(whole**best)
                for reader in group.readers:
                    seen[reader.name] = seen[reader.name].divided(whole[reader.columns] ** best)
                note = f"strength {best:g}, estimated error × {costs[best] / costs[0.0]:.2f}"
                applied.append(Applied(group.name, group.targets, "; ".join(filter(None, (note, _some(group))))))
            advance()
    return applied, skipped


def _cost(group: Group, factor: Tensor, plan: Plan, model: nn.Module, seen: dict[str, Inputs]) -> float:
    """Return the estimated mean squared error of the readers' outputs, summed over them."""
    total, energy = 0.0, torch.zeros(len(factor), dtype=torch.float64)
    nearest = ROUNDINGS["nearest"]
    for reader in group.readers:
        inputs, own = seen[reader.name], factor[reader.columns]
        site, grid = site_of(reader.name, plan)
        assert inputs.moment is not None
        assert inputs.values is not None
        spread = input_factor(reader.module, own)
        total += float(weight_error(site, grid, get_weight(model, site), inputs.moment, spread, nearest).sum())
        columns = column_energy(reader.module).cpu()
        energy.index_add_(0, reader.columns, columns)
        if site.name in plan.activation_grids:
            noise = input_noise(inputs.values, plan.activation_grids[site.name], own, site.kind == "linear")
            total += float((noise * columns).sum())
    if group.name in seen:
        site, grid = site_of(group.name, plan)
        weight, moment = get_weight(model, site), seen[group.name].moment
        assert moment is not None
        spread = output_factor(group.module, 1 / factor)
        total += float((weight_error(site, grid, weight, moment, spread, nearest) * energy).sum())
    return total


def _some(group: Group) -> str:
    return f"some channels stay: {group.note}" if group.note else ""
