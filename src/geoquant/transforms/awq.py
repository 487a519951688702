"""Which columns of a weight matrix deserve the finest rounding?

AWQ (Lin et al., arXiv:2306.00978): those whose inputs are large. Multiplying column j by s_j before rounding, and
dividing the input by it, makes its error s_j times smaller as long as the scale of the row, which the largest
weight sets, stays. s_j = mean|x_j|^t, and the exponent t in [0, 1] of each group is searched for: the one with the
least error tr(E H Eᵀ) of the outputs, summed over the layers that read the source, with every weight rounded on the
plan's own grid. t = 0 changes nothing, so a group gets no worse by its own measure, which sees weights only.

Deviations from the paper: no clipping; factors are divided by their geometric mean; batch norms and whatever a
factor passes through exactly (attention over values, gates, ReLU) are used as sources too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from geoquant.errors import GeoquantError
from geoquant.models import get_weight
from geoquant.plan import Plan
from geoquant.progress import task
from geoquant.rounding import ROUNDINGS
from geoquant.transforms.carrying import HOMOGENEOUS
from geoquant.transforms.errors import site_of, weight_error
from geoquant.transforms.groups import Group, Reader, find_groups
from geoquant.transforms.protocol import TRANSFORMS, Applied, Skipped, TransformContext, TransformReport
from geoquant.transforms.recording import record
from geoquant.transforms.scaling import input_factor, outputs_of
from geoquant.transforms.smoothquant import is_source
from geoquant.transforms.statistics import Inputs, measure_inputs

_MOST = 1 << 27  # numbers in the moments that are held at once


@dataclass(frozen=True)
class Awq:
    """AWQ with its search.

    Attributes:
        steps: exponents tried besides 0, evenly up to 1.
        rounding: a registered rounding to search with; the weights are rounded later, by whatever is chosen then.
    """

    steps: int = 20
    rounding: str = "nearest"
    needs_plan = True

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise GeoquantError(f"AWQ tries at least one exponent besides 0, got steps={self.steps}")

    def __call__(self, model: nn.Module, context: TransformContext) -> TransformReport:
        """Rewrite every norm and layer for which some exponent lowers the readers' output error."""
        plan = context.plan
        assert plan is not None
        flow = record(model, context.batches[0], context.forward)
        groups, skipped = find_groups(model, flow, is_source, HOMOGENEOUS)
        applied = []
        with task("searching scales", len(groups)) as advance:
            for chunk in _chunks(groups):
                names = [reader.name for group in chunk for reader in group.readers]
                seen = measure_inputs(model, names, context.batches, context.forward, moments=True)
                for group in chunk:
                    exponent, gain, factor = self._search(group, plan, model, seen)
                    if exponent == 0:
                        skipped.append(Skipped(group.name, "no exponent lowers the error of what reads it"))
                    else:
                        group.scale_(factor)
                        note = f"exponent {exponent:g}, output error × {gain:.2f}"
                        note += f"; some channels stay: {group.note}" if group.note else ""
                        applied.append(Applied(group.name, group.targets, note))
                    advance()
        return TransformReport("awq", tuple(applied), tuple(skipped))

    def _search(
        self, group: Group, plan: Plan, model: nn.Module, seen: dict[str, Inputs]
    ) -> tuple[float, float, Tensor]:
        """Return the best exponent, its error over that of exponent 0, and the factors."""
        size = torch.zeros(len(group.free), dtype=torch.float64)
        for reader in group.readers:
            size = torch.maximum(size, reader.of_channels(seen[reader.name].mean, len(size)))
        found = []
        for step in range(self.steps + 1):
            factor = group.held(_centred(size ** (step / self.steps), group.free & (size > 0)))
            error = sum(self._error(reader, factor, plan, model, seen[reader.name]) for reader in group.readers)
            found.append((error, step / self.steps, factor))
        error, exponent, factor = min(found, key=lambda each: each[:2])
        return exponent, error / found[0][0] if found[0][0] > 0 else 1.0, factor

    def _error(self, reader: Reader, factor: Tensor, plan: Plan, model: nn.Module, inputs: Inputs) -> float:
        """Return the mean squared error at the reader's output, with its columns multiplied by `factor`."""
        site, grid = site_of(reader.name, plan)
        spread = input_factor(reader.module, factor[reader.columns])
        assert inputs.moment is not None
        errors = weight_error(site, grid, get_weight(model, site), inputs.moment, spread, ROUNDINGS[self.rounding])
        return float(errors.sum())


TRANSFORMS.register("awq", Awq())


def _centred(factor: Tensor, used: Tensor) -> Tensor:
    """Return `factor` over its geometric mean where `used`, 1 elsewhere."""
    if not bool(used.any()):
        return torch.ones_like(factor)
    return torch.where(used, factor / factor[used].log().mean().exp(), 1.0)


def _chunks(groups: list[Group]) -> list[list[Group]]:
    """Split the groups so that the moments of one part fit in memory."""
    chunks: list[list[Group]] = []
    held = _MOST + 1
    for group in groups:
        need = sum(_numbers(reader.module) for reader in group.readers)
        if held + need > _MOST:
            chunks.append([])
            held = 0
        chunks[-1].append(group)
        held += need
    return chunks


def _numbers(layer: nn.Module) -> int:
    """Return how many numbers the second moment of a layer's inputs holds."""
    fan_in = layer.weight.numel() // outputs_of(layer)  # type: ignore[operator]
    return int(getattr(layer, "groups", 1)) * int(fan_in) ** 2
