"""How is a channel that is large in the activations made easy to round?

SmoothQuant (Xiao et al., arXiv:2211.10438): divide the activations of channel j by s_j = max|x_j|^α / max|W_j|^(1−α)
and multiply the columns of the layers that read them by it. The division goes into the norm or the linear layer
before, so nothing is computed at run time. α = 0.5 shares the difficulty evenly; larger moves more of it into the
weights. Helps where the activations are rounded; with float activations there is nothing to smooth.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from geoquant.errors import GeoquantError
from geoquant.plan import Plan
from geoquant.transforms.carrying import HOMOGENEOUS
from geoquant.transforms.groups import Group, find_groups, is_scalable_norm
from geoquant.transforms.protocol import TRANSFORMS, Applied, Skipped, TransformContext, TransformReport
from geoquant.transforms.recording import record
from geoquant.transforms.scaling import column_reach, is_layer
from geoquant.transforms.statistics import Inputs, measure_inputs


@dataclass(frozen=True)
class SmoothQuant:
    """SmoothQuant with its strength.

    Attributes:
        alpha: share of the activations' difficulty that moves into the weights, in [0, 1].

    Raises:
        GeoquantError: `alpha` is outside.
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise GeoquantError(f"alpha is a share between 0 and 1, got {self.alpha:g}")

    def __call__(self, model: nn.Module, context: TransformContext) -> TransformReport:
        """Rewrite every norm and layer whose readers' inputs are to be rounded."""
        flow = record(model, context.batches[0], context.forward)
        groups, skipped = find_groups(model, flow, is_source, HOMOGENEOUS)
        rounded = [group for group in groups if _is_rounded(group, context.plan)]
        skipped += [Skipped(group.name, "what reads it has float inputs") for group in groups if group not in rounded]
        names = [reader.name for group in rounded for reader in group.readers]
        seen = measure_inputs(model, names, context.batches, context.forward) if names else {}
        applied = []
        for group in rounded:
            group.scale_(self.factor(group, seen))
            applied.append(Applied(group.name, group.targets, group.note and f"some channels stay: {group.note}"))
        return TransformReport("smoothquant", tuple(applied), tuple(skipped))

    def factor(self, group: Group, seen: dict[str, Inputs]) -> Tensor:
        """Return s (channels,); 1 for channels that were always zero, or whose columns are."""
        channels = len(group.free)
        inputs, columns = torch.zeros(2, channels, dtype=torch.float64)
        for reader in group.readers:
            largest = reader.of_channels(seen[reader.name].largest, channels)
            inputs = torch.maximum(inputs, largest)
            columns = torch.maximum(columns, reader.of_channels(column_reach(reader.module).cpu(), channels))
        return torch.where((inputs > 0) & (columns > 0), inputs**self.alpha / columns ** (1 - self.alpha), 1.0)


TRANSFORMS.register("smoothquant", SmoothQuant())


def is_source(module: nn.Module) -> bool:
    """Whether `module` is of a kind that can hand a factor per channel on: a norm or a layer."""
    return is_layer(module) or is_scalable_norm(module) or isinstance(module, _BatchNorm)


def _is_rounded(group: Group, plan: Plan | None) -> bool:
    """Whether the plan puts the inputs of any reader on a grid; True without a plan."""
    return plan is None or any(name in plan.activation_grids for name in group.targets)
