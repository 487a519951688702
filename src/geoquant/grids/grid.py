"""Where may the weights of a matrix lie, and what does that cost?

A grid is a number format, a granularity (who shares a scale), a scaling (how scales are found) and the dtype
that stores scales. It fits scales to a matrix, rounds to nearest, decodes, and states its storage. Better
ways to choose among the grid's points than nearest live in `geoquant.rounding`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from geoquant.errors import GridError, suggest
from geoquant.grids.cost import Storage, StoredTensor
from geoquant.grids.fitting import block_size
from geoquant.grids.formats import NumberFormat, clip_limits, find_format
from geoquant.grids.granularity import Granularity, Shape, parse_granularity
from geoquant.grids.packing import code_bits, packed_bytes
from geoquant.grids.quantized import QuantizedMatrix
from geoquant.grids.scale_dtypes import SCALE_DTYPES, scale_dtype
from geoquant.grids.scales import Scales, fit_rows
from geoquant.grids.search import SEARCHES
from geoquant.grids.ste import straight_through


@dataclass(frozen=True, init=False)
class Grid:
    """A set of points that a weight matrix (channels, fan_in) may take.

    Attributes:
        format: the levels and their codes.
        granularity: which weights share a scale.
        scaling: ``maxabs``, ``mse``, ``mse-signed``; ``none`` for formats without scales.
        scale_dtype: ``fp16``, ``bf16``, ``fp32``, ``e5m2``, ``e8m0``; ``none`` for formats without scales.

    What is not given is the format's own default.

    Raises:
        GridError: the parts do not go together.

    >>> grid = Grid.parse("int3:affine:group64")
    >>> grid.bits, grid.storage((16, 144)).bytes  # 864 of codes, 96 of scales, 18 of zero points
    (3, 978)
    >>> str(Grid.parse("int4:mse:channel:fp16"))
    'int4'
    """

    format: NumberFormat
    granularity: Granularity
    scaling: str
    scale_dtype: str

    def __init__(
        self,
        format: NumberFormat,
        granularity: Granularity | None = None,
        scaling: str | None = None,
        scale_dtype: str | None = None,
    ) -> None:
        defaults = format.defaults
        object.__setattr__(self, "format", format)
        object.__setattr__(self, "granularity", granularity or defaults.granularity)
        object.__setattr__(self, "scaling", scaling or defaults.scaling)
        object.__setattr__(self, "scale_dtype", scale_dtype or defaults.scale_dtype)
        self._check()

    def _check(self) -> None:
        defaults = self.format.defaults
        if not defaults.granularity.scaled:
            if (self.granularity, self.scaling, self.scale_dtype) != (defaults.granularity, "none", "none"):
                raise GridError(
                    f"{self.format.tokens[0]} stores each weight as it is and takes no scales; drop the rest"
                )
            return
        if not self.granularity.scaled:
            raise GridError(f"{self.format.tokens[0]} needs scales; choose tensor, channel or groups")
        if self.scaling not in SCALINGS:
            raise GridError(f"there is no scaling named '{self.scaling}'{suggest(self.scaling, SCALINGS)}")
        kind = scale_dtype(self.scale_dtype)
        if self.scaling == "mse-signed" and not kind.signed:
            raise GridError(f"{self.scale_dtype} scales have no sign; use the scaling mse, or fp16 scales")

    @staticmethod
    def parse(name: str) -> Grid:
        """Return the grid called `name`: a format, then options in any order, joined by ``:``.

        Raises:
            GridError: the format or an option is unknown, or two options contradict each other.

        >>> Grid.parse("int4:tensor:maxabs").granularity
        PerTensor()
        """
        head, *tokens = name.strip().split(":")
        format, parts = find_format(head), {}
        for token in tokens:
            kind, value = _read_option(token)
            if kind in parts:
                raise GridError(f"the grid '{name}' gives its {kind} twice; keep one")
            if kind == token:  # none of the options that all grids share, so the format's own
                variant = format.option(token)
                if variant is None:
                    raise GridError(f"the grid '{head}' has no option '{token}'{suggest(token, _options(format))}")
                format, value = variant, None
            parts[kind] = value
        return Grid(format, **{kind: value for kind, value in parts.items() if value is not None})

    def __str__(self) -> str:
        defaults = self.format.defaults
        options = (
            (self.granularity.token, defaults.granularity.token),
            (self.scaling, defaults.scaling),
            (self.scale_dtype, defaults.scale_dtype),
        )
        return ":".join((*self.format.tokens, *(own for own, default in options if own != default)))

    @property
    def bits(self) -> float:
        """Bits per code: 3 for int3, 1.6 for ternary, 32 for fp32; scales not included (see `storage`)."""
        return self.format.bits

    def fit(self, matrix: Tensor, importance: Tensor | None = None) -> Scales:
        """Find the scales of `matrix`.

        Args:
            matrix: (channels, fan_in), floating point.
            importance: weight of each squared error, ≥ 0, broadcastable to `matrix` (so (fan_in,) serves:
                for example the mean squares of the inputs); used by the ``mse`` scalings.

        Raises:
            GridError: `matrix` is no such matrix or holds NaN or Inf, `importance` is negative or does not
                fit, or the scales overflow their dtype.
        """
        matrix = _checked(matrix)
        shape = _shape(matrix)
        if not self.granularity.scaled:
            self._check_range(matrix)
            return Scales(torch.ones(1, 1, device=matrix.device))
        parts = self.granularity.rows(matrix)
        wanted: tuple[Tensor | None, ...] = (None,) * len(parts)
        if importance is not None:
            wanted = self.granularity.rows(_checked_importance(importance, matrix))
        found = [
            fit_rows(self.format, self.scaling, self.scale_dtype, part, weight)
            for part, weight in zip(parts, wanted, strict=True)
        ]
        scale = self.granularity.gather([scale for scale, _ in found], shape)
        zeros = [zero for _, zero in found if zero is not None]
        return Scales(scale, self.granularity.gather(zeros, shape) if zeros else None)

    def normalize(self, matrix: Tensor, scales: Scales) -> Tensor:
        """Return w/scale + zero, float32: the axis on which the format's levels lie. A scale of 0 gives 0."""
        divisor = torch.where(scales.scale == 0, torch.inf, scales.scale)
        scale, zero = self._spread(Scales(divisor, scales.zero), matrix.shape[1])
        x = matrix.detach().float() / scale
        return x if zero is None else x.add_(zero)

    def encode(self, matrix: Tensor, scales: Scales) -> Tensor:
        """Return the code of the grid point nearest to each weight: (channels, fan_in), uint8 (int32: 16 bits).

        Formats without scales return the rounded values themselves, in their dtype.
        """
        blocks = [self.format.encode(self.normalize(matrix[rows], scales[rows])) for rows in _blocks(matrix)]
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks)

    def decode(self, codes: Tensor, scales: Scales) -> Tensor:
        """Return the weights that `codes` (channels, fan_in) name: scale · (level − zero), float32."""
        matrix = torch.empty(codes.shape, dtype=torch.float32, device=codes.device)
        for rows in _blocks(codes):
            scale, zero = self._spread(scales[rows], codes.shape[1])
            level = self.format.decode(codes[rows])
            torch.mul(level if zero is None else level - zero, scale, out=matrix[rows])
        return matrix

    def quantize(self, matrix: Tensor, importance: Tensor | None = None) -> QuantizedMatrix:
        """Fit scales and round to nearest; arguments and errors are those of `fit`."""
        scales = self.fit(matrix, importance)
        return QuantizedMatrix(self, self.encode(matrix, scales), scales)

    def fake_quantize(self, matrix: Tensor, scales: Scales) -> Tensor:
        """Return `matrix` rounded to the grid, in its own dtype, with a straight-through gradient.

        The gradient is 1 up to half of the last gap beyond the end levels and 0 further out. Only
        `matrix` receives one.
        """
        with torch.no_grad():
            x = self.normalize(matrix, scales)
            limits = clip_limits(self.format)
            inside = torch.ones_like(x, dtype=torch.bool)
            if limits is not None:
                inside = (x >= limits[0]) & (x <= limits[1])
            quantized = self.decode(self.encode(matrix, scales), scales).to(matrix.dtype)
        return straight_through(matrix, quantized, inside)

    def stored(self, shape: Shape) -> tuple[StoredTensor, ...]:
        """List the tensors that hold a matrix of `shape` (channels, fan_in) on disk.

        >>> [(t.suffix, t.dtype, t.shape) for t in Grid.parse("int3").stored((16, 27))]
        [('codes', torch.uint8, (162,)), ('scales', torch.float16, (16, 1))]
        """
        count = math.prod(shape)
        if self.format.value_dtype is not None:
            return (StoredTensor("values", self.format.value_dtype, tuple(shape)),)
        groups = self.granularity.shape(shape)
        codes = StoredTensor("codes", torch.uint8, (packed_bytes(count, self.bits),))
        scales = StoredTensor("scales", scale_dtype(self.scale_dtype).stored_as, groups)
        if not self.format.has_zero_point:
            return codes, scales
        return codes, scales, StoredTensor("zeros", torch.uint8, (packed_bytes(math.prod(groups), self.bits),))

    def storage(self, shape: Shape) -> Storage:
        """Return the exact cost of a matrix of `shape` (channels, fan_in).

        >>> Grid.parse("ternary").storage((2, 6))  # 12 trits in 3 bytes, two fp16 scales
        Storage(code_bits=20, scale_bits=32, zero_bits=0, padding_bits=4)
        """
        size = {part.suffix: 8 * part.bytes for part in self.stored(shape)}
        codes = size["values"] if "values" in size else code_bits(math.prod(shape), self.bits)
        zeros = code_bits(math.prod(self.granularity.shape(shape)), self.bits) if "zeros" in size else 0
        scales = size.get("scales", 0)
        return Storage(codes, scales, zeros, sum(size.values()) - codes - scales - zeros)

    def _spread(self, scales: Scales, fan_in: int) -> tuple[Tensor, Tensor | None]:
        zero = None if scales.zero is None else self.granularity.expand(scales.zero, fan_in)
        return self.granularity.expand(scales.scale, fan_in), zero

    def _check_range(self, matrix: Tensor) -> None:
        largest = float(matrix.abs().max())
        if largest > self.format.reach:
            raise GridError(
                f"weights up to {largest:.4g} exceed the largest {self.format.tokens[0]} number "
                f"{self.format.reach:.6g}; use bf16 or fp32"
            )


SCALINGS = ("maxabs", *SEARCHES)


def _read_option(token: str) -> tuple[str, Any]:
    """Return which field of a grid `token` sets, and the value; the token itself when none."""
    granularity = parse_granularity(token)
    if granularity is not None:
        return "granularity", granularity
    if token in SCALINGS:
        return "scaling", token
    if token in SCALE_DTYPES:
        return "scale_dtype", token
    return token, None


def _options(format: NumberFormat) -> list[str]:
    own = [token for token in ("narrow", "affine") if format.option(token)]
    return ["tensor", "channel", "group64", *SCALINGS, *SCALE_DTYPES, *own]


def _blocks(matrix: Tensor) -> Iterator[slice]:
    """Cut the channels so that a block stays in the cache; one pass wants smaller blocks than a search."""
    size = max(1, block_size(matrix.device) // 4 // max(1, matrix.shape[1]))
    return (slice(start, start + size) for start in range(0, max(1, len(matrix)), size))


def _shape(matrix: Tensor) -> Shape:
    return matrix.shape[0], matrix.shape[1]


def _checked(matrix: Tensor) -> Tensor:
    if matrix.dim() != 2 or matrix.numel() == 0 or not matrix.is_floating_point():
        raise GridError(
            f"expected a floating-point matrix (channels, fan_in) with at least one weight, "
            f"found {matrix.dtype} of shape {tuple(matrix.shape)}"
        )
    matrix = matrix.detach().float().contiguous()
    if not bool(torch.isfinite(matrix).all()):
        bad = int((~torch.isfinite(matrix)).sum())
        raise GridError(f"{bad} of {matrix.numel()} weights are NaN or Inf in float32; a grid needs finite weights")
    return matrix


def _checked_importance(importance: Tensor, matrix: Tensor) -> Tensor:
    try:
        spread = importance.detach().to(matrix).expand(matrix.shape)
    except RuntimeError:
        raise GridError(
            f"importance of shape {tuple(importance.shape)} does not fit weights of shape {tuple(matrix.shape)}; "
            "expected (fan_in,) or (channels, fan_in)"
        ) from None
    if not bool((torch.isfinite(spread) & (spread >= 0)).all()):
        raise GridError("importance must be finite and not negative")
    return spread
