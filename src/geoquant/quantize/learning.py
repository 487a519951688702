"""How can codes and scales be learned by gradient, on any grid?

A learned matrix keeps, for every weight, a number x on the axis of the levels; the weight is scale · (level nearest to
x − zero). Rounding passes gradients straight through, so a loss moves x, and a code changes when x crosses
the middle between two levels: AdaRound and SignRound without the restriction to two neighbours, LSQ without its
coupling of codes to scales. Scales move by a factor near 1. It starts at given codes, with x as near as it can be
to the float weight, so that weights whose rounding was a close call flip first. What is minimised is the
caller's business (`geoquant.quantize.blocks`, `geoquant.quantize.network`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from geoquant.grids import SCALE_DTYPES, QuantizedMatrix, Scales, clip_limits
from geoquant.models import Forward, Site, get_weight, predict, set_weight_
from geoquant.quantize.activations import quantizers_of
from geoquant.rates import half_cosine, warm
from geoquant.rounding.learned import neighbours as levels_around

_MARGIN = 0.02  # how far, as a share of a cell, x starts from the cell's walls


class LearnedMatrix(nn.Module):
    """Codes and scales of one matrix as parameters.

    Attributes:
        x: (channels, fan_in), the place of each weight on the axis of the levels.
        stretch: the shape of the scales; a scale is its start times 1 + stretch. None where scales cannot move.

    With `neighbours`, codes stay within the two levels around each weight, which then are those of its grid cell.

    >>> from geoquant.grids import Grid
    >>> matrix = torch.tensor([[-4.0, 0.4, 0.6, 3.0]])
    >>> start = Grid.parse("int3:maxabs:fp32").quantize(matrix)
    >>> learned = LearnedMatrix(start, matrix)
    >>> torch.equal(learned(), start.dequantize()), torch.equal(learned.finish().codes, start.codes)
    (True, True)
    """

    _low: Tensor
    _high: Tensor

    def __init__(self, start: QuantizedMatrix, matrix: Tensor, neighbours: bool = False) -> None:
        super().__init__()
        self._grid, self._scales = start.grid, start.scales
        x = self._grid.normalize(matrix, start.scales)
        limits = clip_limits(self._grid.format)
        assert limits is not None
        low, high = (torch.tensor(limit, dtype=x.dtype) for limit in limits)
        if neighbours:
            low, high, _ = levels_around(self._grid, x)
        self.register_buffer("_low", low)
        self.register_buffer("_high", high)
        self.x = nn.Parameter(into_cells(x, self._grid.format.decode(start.codes), self._levels()))
        movable = SCALE_DTYPES[self._grid.scale_dtype].stored_as.is_floating_point
        self.stretch = nn.Parameter(torch.zeros_like(start.scales.scale)) if movable else None

    def _levels(self) -> Tensor:
        levels = self._grid.format.levels
        assert levels is not None
        return levels.float()

    def _scale(self) -> Tensor:
        return self._scales.scale if self.stretch is None else self._scales.scale * (1 + self.stretch)

    def forward(self) -> Tensor:
        """Return the weights (channels, fan_in); gradients reach x and the scales."""
        level = self._grid.format.nearest(self.x.detach())
        through = self.x + (level - self.x).detach()
        fan_in = self.x.shape[1]
        scale = self._grid.granularity.expand(self._scale(), fan_in)
        if self._scales.zero is None:
            return through * scale
        return (through - self._grid.granularity.expand(self._scales.zero, fan_in)) * scale

    @torch.no_grad()
    def clamp_(self) -> None:
        """Keep x where a small step can still change its code."""
        self.x.clamp_(self._low, self._high)

    @torch.no_grad()
    def finish(self) -> QuantizedMatrix:
        """Return the codes and the scales, the latter as numbers that their dtype holds."""
        kind = SCALE_DTYPES[self._grid.scale_dtype]
        scale = kind.load(kind.store(self._scale().detach().clamp(-kind.largest, kind.largest)))
        codes = self._grid.format.encode(self.x.detach())
        return QuantizedMatrix(self._grid, codes, Scales(scale, self._scales.zero))


def into_cells(x: Tensor, level: Tensor, levels: Tensor, margin: float = _MARGIN) -> Tensor:
    """Return x moved into the cell of the numbers that round to `level`.

    Args:
        x: places on the axis of the levels.
        level: the level of each, same shape.
        levels: all levels, ascending.
        margin: how far inside, as a share of the cell, x comes to lie where it was outside.

    >>> into_cells(torch.tensor([0.3, 2.0]), torch.tensor([0.0, 1.0]), torch.tensor([-1.0, 0.0, 1.0, 2.0])).tolist()
    [0.3..., 1.48...]
    >>> into_cells(torch.tensor([0.45, 2.0]), torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0, 2.0]), 0.25).tolist()
    [0.4499..., 1.25]
    """
    levels = levels.to(x)
    middles = (levels[1:] + levels[:-1]) / 2
    walls = torch.cat([(2 * levels[0] - middles[0])[None], middles, (2 * levels[-1] - middles[-1])[None]])
    index = torch.bucketize(level, middles)
    low, high = walls[index], walls[index + 1]
    outside = (x < low) | (x > high)
    away = torch.where(outside, margin, _MARGIN) * (high - low)
    return torch.minimum(torch.maximum(x, low + away), high - away)


class LearnedModel:
    """A model whose codes, scales and free parameters (norms, biases) can be trained without touching it.

    Static scales of its activations are learned along; those it changes in place.

    Args:
        model: holds the starting codes and everything else.
        reference: the float model, for the weights that the codes stand for.
        sites: those to learn; ones in 16 bits or more are left alone.
        matrices: starting codes by parameter name.
        free: names of other parameters to train.
        neighbours: whether each weight may only go to one of the two levels around it.
    """

    def __init__(
        self,
        model: nn.Module,
        reference: nn.Module,
        sites: Sequence[Site],
        matrices: Mapping[str, QuantizedMatrix],
        free: Iterable[str] = (),
        neighbours: bool = False,
    ) -> None:
        self._model = model
        self._sites = [site for site in sites if matrices[site.parameter].grid.bits < 16]
        self._learned = {
            site.parameter: LearnedMatrix(
                matrices[site.parameter], site.matrix(get_weight(reference, site)).float(), neighbours
            ).to(get_weight(model, site).device)
            for site in self._sites
        }
        names = [*(site.parameter for site in self._sites), *free]
        self._before = {name: model.get_parameter(name).detach().clone() for name in names}
        self._free = {name: model.get_parameter(name).detach().clone().requires_grad_() for name in free}
        self._inputs = [(each, each.scale) for each in quantizers_of(model)]
        device = next(model.parameters()).device
        started = [each.start_learning_(device) for each, _ in self._inputs]
        self._input_stretches = [each for each in started if each is not None]

    def groups(self, codes: float, scales: float, free: float) -> list[dict[str, Any]]:
        """Return parameter groups for an optimizer, with learning rates per kind."""
        learned = self._learned.values()
        stretches = [one.stretch for one in learned if one.stretch is not None]
        found = [
            {"params": [one.x for one in learned], "lr": codes},
            {"params": [*stretches, *self._input_stretches], "lr": scales},
            {"params": list(self._free.values()), "lr": free},
        ]
        return [group for group in found if group["params"]]

    def tensors(self) -> dict[str, Tensor]:
        """Return the parameters as they are now, by name, differentiable."""
        weights = {site.parameter: self._weight(site) for site in self._sites}
        return weights | self._free

    def _weight(self, site: Site) -> Tensor:
        like = get_weight(self._model, site)
        weight = site.restore(self._learned[site.parameter]()).to(like.dtype)
        if like.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last):
            return weight.contiguous(memory_format=torch.channels_last)
        return weight

    def clamp_(self) -> None:
        """Keep every x in reach of its levels."""
        for learned in self._learned.values():
            learned.clamp_()

    def finish_(self) -> dict[str, QuantizedMatrix]:
        """Write what was learned into the model; return the learned sites' codes."""
        for each, _ in self._inputs:
            each.stop_learning_()
        finished = {name: learned.finish() for name, learned in self._learned.items()}
        for site in self._sites:
            set_weight_(self._model, site, site.restore(finished[site.parameter].dequantize()))
        self._write_({name: tensor.detach() for name, tensor in self._free.items()})
        return finished

    def restore_(self) -> None:
        """Put back what the model held before `finish_`."""
        for each, scale in self._inputs:
            each.scale = scale
        self._write_(self._before)

    @torch.no_grad()
    def _write_(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            self._model.get_parameter(name).copy_(tensor)


class Caller(nn.Module):
    """Calls a model on a batch, so that `functional_call` can give it other parameters."""

    def __init__(self, model: nn.Module, forward: Forward | None = None) -> None:
        super().__init__()
        self.model = model
        self._call = forward

    def forward(self, batch: Any) -> Tensor:
        """Return the logits."""
        return predict(self.model, batch, self._call)

    def with_tensors(self, tensors: Mapping[str, Tensor], batch: Any) -> Tensor:
        """Return the logits that the model would give with these parameters."""
        named = {f"model.{name}": tensor for name, tensor in tensors.items()}
        logits: Tensor = functional_call(self, named, (batch,))
        return logits


Rates = tuple[float, float, float]


def learn_(
    learned: LearnedModel,
    loss: Callable[[int], Tensor],
    error: Callable[[], float],
    steps: int,
    rates: Rates,
    advance: Callable[[], None],
) -> dict[str, QuantizedMatrix]:
    """Minimise a loss by Adam and write the result into the model, unless it was better before.

    Args:
        learned: what to learn.
        loss: of a step; called with the number of the step.
        error: of the model as it stands, on all calibration data.
        steps: of Adam.
        rates: learning rates of codes, scales and free parameters; they rise for a tenth of the steps, then fall as a
            half cosine.
        advance: called after each step.

    Returns:
        Codes of the learned sites; empty when nothing better was found.
    """
    before = error()
    _descend_(learned, loss, steps, rates, advance)
    finished = learned.finish_()
    if error() < before:
        return finished
    learned.restore_()
    return {}


def _descend_(
    learned: LearnedModel, loss: Callable[[int], Tensor], steps: int, rates: Rates, advance: Callable[[], None]
) -> None:
    groups = learned.groups(*rates)
    if not groups:
        return
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    starts = [group["lr"] for group in optimizer.param_groups]
    for step in range(steps):
        # Adam's first steps are full steps whatever the gradient: without warm-up they flip every close call at once.
        share = warm(step, steps, 0.1) * half_cosine(step / steps)
        for group, start in zip(optimizer.param_groups, starts, strict=True):
            group["lr"] = start * share
        optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            loss(step).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        learned.clamp_()
        advance()
