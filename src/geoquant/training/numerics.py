"""What does a tensor become when it is computed with in few bits?

Rounding here is *dynamic*: the scale is the largest magnitude of the tensor as it is now (of each row, for weights), so
nothing clips and no range has to be kept. Integers are symmetric without the odd lowest level (so that stochastic
rounding is unbiased up to the ends), and unsigned where nothing is negative, as after a ReLU. fp8 lies under a scale,
fp16 and bf16 under none. Nearest rounding has the smaller error, stochastic rounding (Gupta et al., arXiv:1502.02551)
has mean zero; what each does to training is asked in `geoquant.bounds.descent_condition`.

This is the simulation: levels are held as float32, exactly as the codes and scales would give them (int16 up to
float32's 24 bits). `geoquant.training.kernels` computes the same products in hardware.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from geoquant.errors import GridError
from geoquant.grids import Float, Integer
from geoquant.grids.formats import find_format
from geoquant.training.noise import Noise

Rounding = Literal["nearest", "stochastic"]
FLOAT = "fp32"
# Mantissa bits, smallest normal number and largest number of each small float.
_FLOATS = {
    "fp8_e4m3": (3, 2.0**-6, 448.0),
    "fp8_e5m2": (2, 2.0**-14, 57344.0),
    "fp16": (10, 2.0**-14, 65504.0),
    "bf16": (7, 2.0**-126, float(torch.finfo(torch.bfloat16).max)),
}
# A hair less than the top level, so that float32 never rounds the largest entry past it.
_GUARD = 1 - 2.0**-20


@dataclass(frozen=True)
class Level:
    """A number format to compute in.

    Attributes:
        name: ``int2`` to ``int8``, ``int16``, ``fp8_e4m3``, ``fp8_e5m2``, ``fp16``, ``bf16`` or ``fp32``.
        bits: of one number.
        top: the highest signed integer level; 0 for floats.
    """

    name: str
    bits: int
    top: int = 0

    @property
    def exact(self) -> bool:
        """Whether nothing is rounded."""
        return self.name == FLOAT


@functools.cache
def level(name: str) -> Level:
    """Return the level called `name`.

    Raises:
        GridError: there is no such number format, or none that training computes in.

    >>> level("int4")
    Level(name='int4', bits=4, top=7)
    >>> level("bf16").bits
    16
    """
    format = find_format(name)
    if isinstance(format, Integer):
        return Level(name, format.bits, (1 << format.bits - 1) - 1)
    if isinstance(format, Float) and (name in _FLOATS or name == FLOAT):
        return Level(name, format.bits)
    raise GridError(f"training does not compute in '{name}'; choose int2 to int8, int16, {', '.join(_FLOATS)} or fp32")


def step_share(name: str) -> float:
    """Return the gap between levels as a share of the largest number; for floats, half the gap just below it.

    >>> step_share("int2"), step_share("int4"), step_share("fp32")
    (1.0, 0.14285714285714285, 0.0)
    """
    to = level(name)
    if to.exact:
        return 0.0
    return 1 / to.top if to.top else 2.0 ** -(_FLOATS[name][0] + 1)


@dataclass(frozen=True, eq=False)
class Rounded:
    """A tensor in few bits: ``codes * scale``.

    Attributes:
        codes: float32 of the tensor's shape: integers, or floats of the format.
        scale: one number for the whole tensor.
    """

    codes: Tensor
    scale: float | Tensor

    def dequantize(self) -> Tensor:
        """Return the values."""
        return self.codes if isinstance(self.scale, float) and self.scale == 1.0 else self.codes * self.scale


def round_tensor(x: Tensor, to: Level, how: Rounding, noise: Noise) -> Rounded:
    """Round `x` (any shape) under one scale for all of it; where it has NaN or Inf, so has the result.

    >>> x = torch.tensor([-7.0, 0.4, 3.0])
    >>> round_tensor(x, level("int4"), "nearest", Noise(0)).dequantize().round(decimals=4).tolist()
    [-7.0, 0.0, 3.0]
    >>> many = round_tensor(torch.tensor([1.0, *[0.3] * 20000]), level("int2"), "stochastic", Noise(0)).dequantize()
    >>> abs(float(many[1:].mean()) - 0.3) < 0.01
    True
    """
    x = x.detach()
    if to.exact or x.numel() == 0:
        return Rounded(x, 1.0)
    x = x if x.dtype == torch.float32 else x.float()
    if not _is_dense(x):
        x = x.contiguous()
    codes = torch.empty_like(x)
    flat, out = x.as_strided((x.numel(),), (1,)), codes.as_strided((x.numel(),), (1,))
    if to.top:
        return Rounded(codes, _round_integers(flat, out, to, how, noise))
    return Rounded(codes, _round_floats(flat, out, to, how, noise))


def round_rows(x: Tensor, to: Level, how: Rounding, noise: Noise) -> Tensor:
    """Return `x` (rows, ...) rounded under one scale for each row (for weights: each output channel), as values.

    Rows keep their scale on whatever machine they lie, so a weight that is sharded by rows rounds as a whole one does.

    >>> x = torch.tensor([[7.0, 0.4], [0.7, 0.04]])
    >>> round_rows(x, level("int4"), "nearest", Noise(0))
    tensor([[7.0000, 0.0000],
            [0.7000, 0.0000]])
    """
    return rounded_rows(x, to, how, noise).dequantize().to(x.dtype)


def rounded_rows(x: Tensor, to: Level, how: Rounding, noise: Noise) -> Rounded:
    """Return codes and scales of `round_rows`; the scales are (rows, 1, ...)."""
    x = x.detach()
    if to.exact or x.numel() == 0:
        return Rounded(x, 1.0)
    if to.name in ("fp16", "bf16") or x.dim() < 2:
        return round_tensor(x, to, how, noise)
    matrix = x.float().flatten(1)
    scale = matrix.abs().amax(1, keepdim=True) / (to.top or _FLOATS[to.name][2])
    if how == "stochastic" and to.top:
        scale = scale / _GUARD
    codes = matrix / torch.where(scale == 0, torch.inf, scale)
    if to.top:
        codes = codes.round_() if how == "nearest" else codes.add_(_drawn(codes, noise)).floor_()
    else:
        codes = _to_float(codes, to, _drawn(codes, noise) if how == "stochastic" else None)
    return Rounded(codes.view(x.shape), scale.view(-1, *[1] * (x.dim() - 1)))


def _round_integers(flat: Tensor, out: Tensor, to: Level, how: Rounding, noise: Noise) -> float | Tensor:
    low, high = torch.aminmax(flat)
    if flat.device.type == "cpu":
        least, most = float(low), float(high)
        top = 2 * to.top + 1 if least >= 0 else to.top
        largest = max(-least, most)
        if not math.isfinite(largest):
            out.fill_(math.nan)
            return 1.0
        scale = largest / top
        if scale < torch.finfo(torch.float32).tiny:  # zeros, or numbers that float32 no longer divides
            out.zero_()
            return 1.0
        if how == "nearest":
            torch.mul(flat, 1 / scale, out=out).round_()
            return scale
        inverse = _GUARD / scale
        for source, target, draws in _chunks(flat, out, noise):
            torch.add(draws, source, alpha=inverse, out=target).floor_()
        return scale / _GUARD
    return _round_integers_there(flat, out, to, how, noise, low, high)


def _round_integers_there(
    flat: Tensor, out: Tensor, to: Level, how: Rounding, noise: Noise, low: Tensor, high: Tensor
) -> Tensor:
    """Do the same without waiting for the device."""
    top = torch.where(low >= 0, 2.0 * to.top + 1, float(to.top))
    scale = torch.maximum(-low, high) / top
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    torch.div(flat, scale, out=out)
    if how == "nearest":
        out.round_()
        return scale
    out.mul_(_GUARD).add_(next(iter(noise.pieces(flat.numel(), flat.device)))).floor_()
    return scale / _GUARD


def _round_floats(flat: Tensor, out: Tensor, to: Level, how: Rounding, noise: Noise) -> float | Tensor:
    scale: float | Tensor = 1.0
    if to.bits == 8:
        scale = flat.abs().amax() / _FLOATS[to.name][2]
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        torch.div(flat, scale, out=out)
    else:
        out.copy_(flat)
    if how == "nearest":
        out.copy_(_to_float(out, to, None))
        return scale
    for source, target, draws in _chunks(out, out, noise):
        target.copy_(_to_float(source, to, draws))
    return scale


def _to_float(x: Tensor, to: Level, draws: Tensor | None) -> Tensor:
    """Round to the small float's levels: to the nearest, or by `draws` to one of the two neighbours.

    fp16 and bf16 overflow to infinity as they do in hardware; fp8 was scaled so that it cannot.
    """
    if draws is None and to.bits == 16:
        return x.to(torch.float16 if to.name == "fp16" else torch.bfloat16).float()
    mantissa, smallest, highest = _FLOATS[to.name]
    # A float32 masked down to its exponent is the power of two below it; levels lie 2^−mantissa of that apart.
    gap = (x.contiguous().view(torch.int32) & 0x7F800000).view(torch.float32)
    gap = gap.clamp_(smallest, 2.0**126).mul_(2.0**-mantissa)
    quotient = x / gap
    rounded = (quotient.round_() if draws is None else quotient.add_(draws).floor_()).mul_(gap)
    if to.bits == 8:
        return rounded.clamp_(-highest, highest)
    return torch.where(rounded.abs() > highest, torch.inf * rounded.sign(), rounded)


def _chunks(flat: Tensor, out: Tensor, noise: Noise) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    start = 0
    for draws in noise.pieces(flat.numel(), flat.device):
        stop = start + draws.numel()
        yield flat[start:stop], out[start:stop], draws
        start = stop


def _drawn(like: Tensor, noise: Noise) -> Tensor:
    return torch.cat(list(noise.pieces(like.numel(), like.device))).view(like.shape)


def _is_dense(x: Tensor) -> bool:
    """Whether the elements of `x` fill one piece of memory, in any order of the axes, each once."""
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True
