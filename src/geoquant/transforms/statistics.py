"""What enters the layers on the calibration data: how large is each channel, and which channels go together?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from geoquant.models import Arrival, Forward, inference, predict
from geoquant.models.moments import channel_axis, first_input, second_moment
from geoquant.progress import task

_SAMPLE = 2048  # positions of each batch that are kept, where values are asked for


@dataclass(frozen=True, eq=False)
class Inputs:
    """What one layer received.

    Attributes:
        largest: max |x| of each input channel, (inputs,) float64.
        mean: mean |x| of each input channel, (inputs,) float64.
        moment: E[x xᵀ] of what the layer multiplies, (groups, fan_in, fan_in) float64; None where not asked for.
        values: some of the values, (inputs, positions); None where not asked for.
    """

    largest: Tensor
    mean: Tensor
    moment: Tensor | None = None
    values: Tensor | None = None

    def divided(self, factor: Tensor) -> Inputs:
        """Return what the layer receives once its inputs are divided by `factor` (inputs,) float64."""
        moment = self.moment
        if moment is not None:
            per_group = factor.view(len(moment), -1)
            own = per_group.repeat_interleave(moment.shape[1] // per_group.shape[1], 1)
            moment = moment / (own[:, :, None] * own[:, None, :])
        values = None if self.values is None else self.values / factor[:, None].to(self.values)
        return Inputs(self.largest / factor, self.mean / factor, moment, values)


@dataclass
class _Tally:
    count: int = 0
    largest: Tensor | None = None
    total: Tensor | None = None
    moment: Tensor | None = None
    values: list[Tensor] = field(default_factory=list)

    def add(self, layer: nn.Module, tensor: Tensor, moment: bool, values: bool) -> None:
        rows = tensor.detach().movedim(channel_axis(layer, tensor), 0).flatten(1)
        largest, total = rows.abs().amax(1).double(), rows.abs().double().sum(1)
        self.largest = largest if self.largest is None else torch.maximum(self.largest, largest)
        self.total = total if self.total is None else self.total + total
        self.count += rows.shape[1]
        if moment:
            found = second_moment(layer, [Arrival((tensor,), {})])
            if found is not None:
                weighted = found * rows.shape[1]
                self.moment = weighted if self.moment is None else self.moment + weighted
        if values:
            self.values.append(rows[:, :: max(1, rows.shape[1] // _SAMPLE)].clone())

    def result(self) -> Inputs | None:
        if self.largest is None or self.total is None:
            return None
        moment = None if self.moment is None else (self.moment / self.count).cpu()
        values = torch.cat(self.values, 1).cpu() if self.values else None
        return Inputs(self.largest.cpu(), (self.total / self.count).cpu(), moment, values)


def measure_inputs(
    model: nn.Module,
    names: Sequence[str],
    batches: Sequence[Any],
    forward: Forward | None = None,
    moments: bool = False,
    values: bool = False,
) -> dict[str, Inputs]:
    """Return what entered each named layer over all `batches`; layers that nothing reached are left out.

    >>> model = nn.Sequential(nn.Linear(2, 1))
    >>> seen = measure_inputs(model, ["0"], [torch.tensor([[1.0, -4.0], [3.0, 0.0]])])["0"]
    >>> seen.largest.tolist(), seen.mean.tolist()
    ([3.0, 4.0], [2.0, 2.0])
    """
    tallies = {name: _Tally() for name in names}
    hooks = []
    for name, tally in tallies.items():

        def note(layer: nn.Module, args: Any, kwargs: Any, tally: _Tally = tally) -> None:
            tally.add(layer, first_input(Arrival(args, kwargs)), moments, values)

        hooks.append(model.get_submodule(name).register_forward_pre_hook(note, with_kwargs=True))
    try:
        with inference(model), task("looking at inputs", len(batches)) as advance:
            for batch in batches:
                predict(model, batch, forward)
                advance()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: found for name, tally in tallies.items() if (found := tally.result()) is not None}
