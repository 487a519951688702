"""Where do activations lie, over all calibration batches, and how wide is the domain that a layer sees?

One pass over the data: extremes, means and norms are exact; quantiles and MSE-optimal clips come from a
histogram (`geoquant.geometry.histogram`) that knows every value to 0.8 %. They speak of the calibration data
only: other inputs may lie outside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, Literal

from torch import Tensor, nn

from geoquant.errors import DataError, GeoquantError, LayerNameError
from geoquant.geometry.histogram import Counter, Histogram
from geoquant.models import Forward, batch_size, inference, predict, select
from geoquant.progress import task

Side = Literal["inputs", "outputs"]


@dataclass(frozen=True, eq=False)
class ActivationRange:
    """What one module takes in (or gives out) over all batches.

    Attributes:
        lowest: smallest value seen.
        highest: largest value seen.
        mean: of all values.
        rms: root mean square of all values.
        largest_norm: largest Euclidean norm of one sample.
        diameter: (low, high), between which the largest distance of two samples lies.
        histogram: of all values.
        count: number of values.
    """

    lowest: float
    highest: float
    mean: float
    rms: float
    largest_norm: float
    diameter: tuple[float, float]
    histogram: Histogram
    count: int

    def percentile(self, percent: float) -> tuple[float, float]:
        """Return the range that leaves out `100 − percent` percent, half on each side.

        Raises:
            GeoquantError: `percent` is outside (0, 100].
        """
        if not 0 < percent <= 100:
            raise GeoquantError(f"a percentile range keeps between 0 and 100 percent, got {percent}")
        tail = (100.0 - percent) / 200.0
        low, high = self.histogram.quantile(tail), self.histogram.quantile(1.0 - tail)
        return self._inside(low), self._inside(high)

    def _inside(self, value: float) -> float:
        return min(max(value, self.lowest), self.highest)

    def mse_clip(self, bits: int, *, symmetric: bool = False) -> tuple[float, float]:
        """Return the clipping range of least mean squared error for an integer grid with zero on a level.

        Args:
            bits: of the grid; at least 1, or 2 where symmetric.
            symmetric: 2^bits − 1 levels over [−high, high]; otherwise 2^bits levels over a range around zero.

        >>> import torch
        >>> spread = activation_ranges(nn.ReLU(), [torch.linspace(0, 1, 1000).view(1, -1)])[""]
        >>> low, high = spread.mse_clip(8)  # a uniform distribution is best not clipped
        >>> low, round(high, 2)
        (0.0, 1.0)
        """
        if bits < (2 if symmetric else 1):
            raise GeoquantError(f"bits={bits} leaves no level beside zero; use at least {2 if symmetric else 1}")
        error, levels = self.histogram.clip_error, 2**bits - symmetric
        if symmetric:
            reach = max(abs(self.lowest), abs(self.highest))
            best = reach * best_share(lambda share: error(-share * reach, share * reach, levels))
            return -best, best
        bottom, top = min(self.lowest, 0.0), max(self.highest, 0.0)
        # With outliers on both sides each end alone has local minima: first look at all pairs, coarsely.
        rough = self.histogram.coarser(0.05).clip_error
        shares = [1.25**-step for step in range(40)]
        ends = (shares if bottom < 0 else [1.0], shares if top > 0 else [1.0])
        ranked = sorted(product(*ends), key=lambda pair: rough(pair[0] * bottom, pair[1] * top, levels))
        found = [self._descended(bottom, top, levels, *pair) for pair in ranked[:3]]
        return min(found, key=lambda ends: error(ends[0], ends[1], levels))

    def _descended(self, bottom: float, top: float, levels: int, low: float, high: float) -> tuple[float, float]:
        """Improve the share of each end in turn, the other held; return the ends."""
        error = self.histogram.clip_error
        for _ in range(2):
            high = _refined(partial(_error_of_high, error, low * bottom, top, levels), high)
            low = _refined(partial(_error_of_low, error, high * top, bottom, levels), low)
        return low * bottom, high * top


Error = Callable[[float, float, int], float]


def _error_of_high(error: Error, low: float, top: float, levels: int, share: float) -> float:
    return error(low, share * top, levels)


def _error_of_low(error: Error, high: float, bottom: float, levels: int, share: float) -> float:
    return error(share * bottom, high, levels)


def _refined(error: Callable[[float], float], share: float) -> float:
    """Improve a share by up to a quarter either way; never make it worse."""
    shares = [share * 1.25 ** (step / 10) for step in range(-10, 11)]
    best: float = min([share, *(candidate for candidate in shares if candidate <= 1.0)], key=error)
    return best


def best_share(error: Callable[[float], float]) -> float:
    """Minimise over shares in (0, 1]: a geometric scan, then two finer ones around its best."""
    shares = [1.15**-step for step in range(70)]
    for _ in range(3):
        best = min(range(len(shares)), key=lambda place: error(shares[place]))
        high, low = shares[max(best - 1, 0)], shares[min(best + 1, len(shares) - 1)]
        shares = [high + (low - high) * step / 16 for step in range(17)]
    return min(shares, key=error)


def activation_ranges(
    model: nn.Module,
    batches: Sequence[Any],
    modules: Iterable[str] | None = None,
    *,
    side: Side = "inputs",
    forward: Forward | None = None,
) -> dict[str, ActivationRange]:
    """Return the ranges of the modules' first input (or output) tensor over all batches.

    Args:
        model: any module; run in eval mode, left as it was.
        batches: at least one.
        modules: names or ``re:`` patterns; every module without children when None.
        side: ``"inputs"`` or ``"outputs"``.
        forward: how to call the model.

    Raises:
        DataError: no batch, or an activation that is not finite.
        LayerNameError: a pattern matches nothing, or a named module was never called with real numbers.

    >>> import torch
    >>> found = activation_ranges(nn.ReLU(), [torch.tensor([[-3.0, 1.0]]), torch.tensor([[2.0, 5.0]])])[""]
    >>> found.lowest, found.highest, found.count
    (-3.0, 5.0, 4)
    """
    if not batches:
        raise DataError("there is no batch to measure on; expected at least one")
    leaves = [name for name, module in model.named_modules() if not any(module.children())]
    known = [name for name, _ in model.named_modules()]
    chosen = leaves if modules is None else list(select(known, modules))
    tallies: dict[str, RangeTally] = {}
    with task("activation ranges", len(batches)) as advance, inference(model):
        for batch in batches:
            samples = batch_size(batch)

            def keep(name: str, values: Tensor, samples: int = samples) -> None:
                tallies.setdefault(name, RangeTally()).add(name, values, samples)

            with hooked(model, chosen, side, keep):
                predict(model, batch, forward)
            advance()
    missing = [] if modules is None else [name for name in chosen if name not in tallies]
    if missing:
        raise LayerNameError(f"'{missing[0]}' was never called with a floating-point tensor; it has no range")
    return {name: tally.result() for name, tally in tallies.items()}


def range_of(tensors: Iterable[Tensor], name: str = "") -> ActivationRange:
    """Return the range of tensors that are at hand; the first axis of each counts samples.

    Args:
        tensors: at least one, none of them empty.
        name: of what they are inputs of, for the message.

    Raises:
        DataError: a value is not finite.

    >>> import torch
    >>> range_of([torch.tensor([1.0, 2.0]), torch.tensor([-1.0])]).highest
    2.0
    """
    tally = RangeTally()
    for tensor in tensors:
        tally.add(name, tensor.detach(), len(tensor) if tensor.dim() > 0 else 1)
    return tally.result()


@contextmanager
def hooked(model: nn.Module, chosen: Sequence[str], side: Side, keep: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Hand, while open, the first real tensor that each chosen module takes in (or gives out) to `keep`."""
    wanted = set(chosen)
    handles = []
    for name, module in model.named_modules():
        if name not in wanted:
            continue

        # Inputs are read before the call: in-place layers overwrite them.
        def before(_: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            _keep_first(keep, name, (args, kwargs))

        def after(_: nn.Module, args: Any, output: Any, name: str = name) -> None:
            _keep_first(keep, name, output)

        if side == "inputs":
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        else:
            handles.append(module.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _keep_first(keep: Callable[[str, Tensor], None], name: str, value: Any) -> None:
    first = next((tensor for tensor in _tensors(value) if tensor.is_floating_point()), None)
    if first is not None and first.numel() > 0:
        keep(name, first.detach())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)


class RangeTally:
    """Running extremes, moments, norms and histogram of tensors that come one after another."""

    anchor: Tensor | None = None
    lowest, highest = math.inf, -math.inf
    total = squares = largest_norm = reach = 0.0
    count = 0

    def __init__(self) -> None:
        self.counter = Counter()

    def add(self, name: str, values: Tensor, samples: int) -> None:
        """Take in one tensor of `samples` samples; `DataError`, which says `name`, where it is not finite."""
        double = values.double()
        if not bool(double.isfinite().all()):
            raise DataError(f"the activations of '{name or 'the model'}' hold NaN or Inf on the calibration data")
        self.lowest = min(self.lowest, float(double.min()))
        self.highest = max(self.highest, float(double.max()))
        self.total += float(double.sum())
        self.squares += float(double.square().sum())
        self.count += values.numel()
        self.counter.add(values)
        rows = double.reshape(samples if values.dim() > 0 and len(values) == samples else 1, -1)
        self.largest_norm = max(self.largest_norm, float(rows.norm(dim=1).max()))
        if self.anchor is None:
            self.anchor = rows[:1].clone()
        # Distances are between samples of one shape; of sequences of several lengths the first one's counts.
        if self.anchor.shape[1] == rows.shape[1]:
            self.reach = max(self.reach, float((rows - self.anchor).norm(dim=1).max()))

    def result(self) -> ActivationRange:
        """Return the range so far; at least one tensor must have come.

        Every sample lies within `reach` of the first one, so the diameter is between reach and twice that.
        """
        return ActivationRange(
            self.lowest,
            self.highest,
            self.total / self.count,
            math.sqrt(self.squares / self.count),
            self.largest_norm,
            (self.reach, 2 * min(self.reach, self.largest_norm)),
            self.counter.histogram(),
            self.count,
        )
