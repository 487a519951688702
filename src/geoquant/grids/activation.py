"""Onto which grid do the inputs of a layer go, and when is its scale known?

An `ActivationGrid` is a number format, who shares a scale (the whole tensor, or each token), whether the scale is
fitted once on calibration data (static) or anew at every call (dynamic), and, for static ones, which range of the
values seen it covers. It has a name::

    int8:affine               one static scale and zero point, of least squared error on the calibration data
    int8:affine:minmax        the same, covering everything seen
    int8:percentile99.9       symmetric, leaving out 0.05 % at each end
    int8:affine:dynamic       one scale per call, from the smallest and the largest value that came
    int4:affine:token         dynamic, one scale per token

Here lives only the arithmetic; ranges are looked for in `geoquant.geometry.clipping`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from geoquant.errors import GridError, suggest
from geoquant.grids.formats import NumberFormat, clip_limits, find_format
from geoquant.grids.learned_scale import learned_scale
from geoquant.grids.scales import max_abs
from geoquant.grids.ste import straight_through

RANGE_METHODS = ("minmax", "percentile", "mse", "entropy")
PERCENT = 99.99
_OWN_TOKENS = ("tensor", "token", "static", "dynamic", *RANGE_METHODS)


@dataclass(frozen=True)
class ActivationScale:
    """Scale and zero point of a static grid; both survive float32 and int32 storage unchanged.

    Attributes:
        scale: activation units per level; 0 where calibration showed nothing but zeros.
        zero: the level that stands for 0.
    """

    scale: float
    zero: int = 0


@dataclass(frozen=True)
class ActivationGrid:
    """A grid for activations.

    Attributes:
        format: the levels.
        per_token: one scale per token instead of one per tensor; only at run time.
        dynamic: whether the scale is found at every call.
        method: which range a static scale covers: ``minmax``, ``percentile``, ``mse``, ``entropy``.
        percent: share of values that ``percentile`` keeps.

    Raises:
        GridError: the parts do not go together.

    >>> grid = ActivationGrid.parse("int8:static:affine:tensor:mse")
    >>> str(grid), grid.bits
    ('int8:affine', 8)
    >>> grid.cover(-1.0, 1.55)
    ActivationScale(scale=0.010000000707805157, zero=100)
    """

    format: NumberFormat
    per_token: bool = False
    dynamic: bool = False
    method: str = "mse"
    percent: float = PERCENT

    def __post_init__(self) -> None:
        name = self.format.tokens[0]
        if self.format.value_dtype is not None or self.format.levels is None:
            raise GridError(f"{name} activations stay as they are; leave those layers out of the activation grids")
        if self.per_token and not self.dynamic:
            raise GridError("a scale per token is found when the token comes; drop 'static' or use 'tensor'")
        if self.dynamic and self.method != "minmax":
            raise GridError(f"a dynamic grid covers what came, so it takes no range '{self.method}'; drop one of both")
        if self.method not in RANGE_METHODS:
            raise GridError(f"there is no range '{self.method}'{suggest(self.method, RANGE_METHODS)}")
        if not 0 < self.percent <= 100:
            raise GridError(f"a percentile range keeps between 0 and 100 percent, got {self.percent:g}")

    @staticmethod
    def parse(name: str) -> ActivationGrid:
        """Return the grid called `name`: a format, then options in any order, joined by ``:``.

        Raises:
            GridError: the format or an option is unknown, or two options contradict each other.

        >>> ActivationGrid.parse("int4:affine:token").dynamic
        True
        """
        head, *tokens = name.strip().split(":")
        format, found = find_format(head), dict[str, str]()
        for token in tokens:
            kind = _kind(token)
            if kind in found:
                raise GridError(f"the activation grid '{name}' gives its {kind} twice; keep one")
            if kind == token:
                variant = format.option(token)
                if variant is None:
                    known = [*_OWN_TOKENS, *(each for each in ("affine", "narrow") if format.option(each))]
                    raise GridError(f"activation grids have no option '{token}'{suggest(token, known)}")
                format = variant
            found[kind] = token
        per_token = found.get("granularity") == "token"
        dynamic = found.get("moment", "dynamic" if per_token else "static") == "dynamic"
        text = found.get("range", "minmax" if dynamic else "mse")
        percent = float(text.removeprefix("percentile")) if text[-1].isdigit() else PERCENT
        return ActivationGrid(format, per_token, dynamic, text.rstrip("0123456789."), percent)

    def __str__(self) -> str:
        parts = list(self.format.tokens)
        if self.per_token:
            parts.append("token")
        elif self.dynamic:
            parts.append("dynamic")
        if self.method == "percentile":
            parts.append("percentile" if self.percent == PERCENT else f"percentile{self.percent!r}")
        elif not self.dynamic and self.method != "mse":
            parts.append(self.method)
        return ":".join(parts)

    @property
    def bits(self) -> float:
        """Bits per activation."""
        return self.format.bits

    def with_range(self, method: str) -> ActivationGrid:
        """Return the same grid with another range; dynamic ones have none and stay.

        >>> str(ActivationGrid.parse("int8").with_range("percentile99.9"))
        'int8:percentile99.9'
        """
        if self.dynamic:
            return self
        if _kind(method) != "range":
            raise GridError(f"there is no range '{method}'{suggest(method, RANGE_METHODS)}")
        other = ActivationGrid.parse(f"int8:{method}")
        return replace(self, method=other.method, percent=other.percent)

    def cover(self, low: float, high: float) -> ActivationScale:
        """Return the scale that covers [low, high] (and zero), rounded up to a float32.

        Raises:
            GridError: the range is not finite.
        """
        if not (low <= high and abs(low) < torch.inf and abs(high) < torch.inf):
            raise GridError(f"activations from {low:g} to {high:g} have no scale; expected a finite range")
        ends = [torch.tensor([end], dtype=torch.float64) for end in (low, high)]
        scale, zero = max_abs(self.format, "fp32", *ends)
        return ActivationScale(float(scale), 0 if zero is None else int(zero))

    def quantize(self, values: Tensor, scale: ActivationScale) -> Tensor:
        """Return `values` on the static grid, in their own dtype, with a straight-through gradient.

        >>> grid = ActivationGrid.parse("int2:affine")
        >>> grid.quantize(torch.tensor([-3.0, 0.4, 0.6, 9.0]), ActivationScale(1.0, 1)).tolist()
        [-1.0, 0.0, 1.0, 2.0]
        """
        return self._onto(values, lambda x: (scale.scale, scale.zero))

    def quantize_learnably(self, values: Tensor, scale: Tensor, zero: int = 0, factor: float = 1.0) -> Tensor:
        """Return `values` on the grid of a scale that receives a gradient too (LSQ, Esser et al., arXiv:1902.08153).

        Inside the range a scale moves the rounding error with it, outside the end level; its gradient counts `factor`
        times.

        >>> grid, scale = ActivationGrid.parse("int2:affine"), torch.tensor(1.0, requires_grad=True)
        >>> grid.quantize_learnably(torch.tensor([0.75, 9.0]), scale).sum().backward()
        >>> scale.grad.item()  # (1 - 0.75) + 3
        3.25
        """
        levels = self.format.levels
        assert levels is not None
        ends = float(levels[0]), float(levels[-1])
        return learned_scale(values.float(), scale, zero, self.format, ends, factor).to(values.dtype)

    def quantize_dynamically(self, values: Tensor, by_sample: bool = False) -> Tensor:
        """Return `values` on a grid that covers what came.

        Args:
            values: any shape.
            by_sample: what a token is: each sample (the first axis) or each vector along the last axis.

        >>> grid = ActivationGrid.parse("int2:affine:token")
        >>> grid.quantize_dynamically(torch.tensor([[0.0, 0.9, 3.0], [0.0, 4.0, 6.0]])).tolist()
        [[0.0, 1.0, 3.0], [0.0, 4.0, 6.0]]
        """
        return self._onto(values, lambda x: self._found(x, by_sample))

    def _found(self, x: Tensor, by_sample: bool) -> tuple[Tensor, Tensor | float]:
        """Return the scale, and the zero point, that cover each token or everything; broadcastable to `x`."""
        axes = tuple(range(x.dim()))
        if self.per_token and x.dim() > 0:
            axes = axes[1:] if by_sample else axes[-1:]
        low, high = (x.amin(axes, keepdim=True), x.amax(axes, keepdim=True)) if axes else (x, x)
        if not self.format.has_zero_point:
            return torch.maximum(-low, high) / self.format.reach, 0.0
        low, high, steps = low.clamp(max=0.0), high.clamp(min=0.0), 2 * self.format.reach
        scale = (high - low) / steps
        return scale, torch.where(scale > 0, -low / scale, 0.0).round().clamp(0.0, steps)

    def _onto(self, values: Tensor, find: Callable[[Tensor], tuple[Tensor | float, Tensor | float]]) -> Tensor:
        with torch.no_grad():
            x = values.detach().float()
            scale, zero = find(x)
            divisor = torch.where(scale > 0, scale, torch.inf) if isinstance(scale, Tensor) else scale or torch.inf
            x = x / divisor + zero
            quantized = ((self.format.nearest(x.clone()) - zero) * scale).to(values.dtype)
        if not (torch.is_grad_enabled() and values.requires_grad):
            return quantized
        low, high = self._limits
        return straight_through(values, quantized, (x >= low) & (x <= high))

    @cached_property
    def _limits(self) -> tuple[float, float]:
        limits = clip_limits(self.format)
        assert limits is not None
        return limits


def _kind(token: str) -> str:
    """Return which part of an activation grid `token` sets; the token itself where that is the format's business."""
    if token in ("tensor", "token"):
        return "granularity"
    if token in ("static", "dynamic"):
        return "moment"
    if token in RANGE_METHODS or re.fullmatch(r"percentile\d+(\.\d+)?", token):
        return "range"
    return token
