"""In which ONNX type does each weight lie, and in which form is it multiplied?

A format whose levels are whole numbers takes the narrowest integer type that holds them: int2, int4, int8 or int16,
unsigned where the grid has a zero point. Small floats go to float8 where all their levels are float8 numbers. What is
left is stored dequantized. Everything follows from the plan, so bytes are known before anything is written. Scales are
float32 here, since a smaller type would round the product that `DequantizeLinear` returns.

Of 8-bit weights beside static 8-bit activations the processor decides. On x86 without VNNI, ONNX Runtime's kernels for
int8 weights add pairs of products in 16 bits, and overflow; those for uint8 never do, and are slower where VNNI is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from geoquant.errors import ExportError
from geoquant.export.protocol import StoredLayer
from geoquant.grids import ActivationGrid, Grid, PerChannel, PerGroup, PerTensor
from geoquant.models import Site
from geoquant.plan import Plan

QDQ, NBITS, PLAIN = "qdq", "nbits", "plain"
LINEARS = ("auto", QDQ, NBITS)
PORTABLE, VNNI = "portable", "vnni"
KERNELS = (PORTABLE, VNNI)
OLDEST_OPSET, NEWEST_OPSET = 18, 25

# Smaller products gain nothing from MatMulNBits, whose kernel then spends its time on setting up.
_LEAST_WEIGHTS = 1 << 16
_BLOCKS = (128, 64, 32, 16)


@dataclass(frozen=True)
class OnnxType:
    """An element type of ONNX: its name, its width, the least opset whose `DequantizeLinear` takes it."""

    name: str
    bits: int
    opset: int


_INTEGERS = (OnnxType("int2", 2, 25), OnnxType("int4", 4, 21), OnnxType("int8", 8, 13), OnnxType("int16", 16, 21))
_SMALL_FLOATS = (
    (OnnxType("float8e4m3fn", 8, 19), torch.float8_e4m3fn),
    (OnnxType("float8e5m2", 8, 19), torch.float8_e5m2),
)
_STORED = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


@dataclass(frozen=True)
class Choice:
    """How one weight goes into the file.

    Attributes:
        site: the weight.
        grid: the plan's.
        type: ONNX type of the codes, or of the weights themselves where `form` is ``plain``.
        form: ``qdq`` (`DequantizeLinear` before the layer), ``nbits`` (`MatMulNBits`) or ``plain`` (no codes).
        block: weights that share a scale in the file; 0 for a channel or the whole matrix.
        shift: what is added to each level so that the type holds it, and to the zero point of every scale.
        kernels: which of `KERNELS` the type is for; empty where there is nothing to choose.
    """

    site: Site
    grid: Grid
    type: OnnxType
    form: str
    block: int = 0
    shift: int = 0
    kernels: str = ""

    @property
    def scales(self) -> int:
        """Number of scales in the file."""
        channels, fan_in = self.site.matrix_shape
        if self.form == PLAIN:
            return 0
        if self.block:
            return channels * math.ceil(fan_in / self.block)
        return 1 if isinstance(self.grid.granularity, PerTensor) else channels

    @property
    def bytes(self) -> int:
        """Bytes of codes, scales and zero points."""
        channels, fan_in = self.site.matrix_shape
        if self.form == NBITS:
            blocks = math.ceil(fan_in / self.block)
            codes = channels * blocks * self.block * self.type.bits // 8
            zeros = channels * math.ceil(blocks * self.type.bits / 8) if self.grid.format.has_zero_point else 0
            return codes + 4 * self.scales + zeros
        zeros = self.scales if self.form == QDQ and (self.shift or self.grid.format.has_zero_point) else 0
        return _packed(channels * fan_in, self.type.bits) + 4 * self.scales + _packed(zeros, self.type.bits)

    @property
    def stored(self) -> str:
        """Name of the type, with what multiplies it."""
        return f"{self.type.name} MatMulNBits" if self.form == NBITS else self.type.name

    def layer(self) -> StoredLayer:
        """Return what the file will hold, with the reason where that is more than planned, or not for any processor."""
        told = self.kernels == VNNI or self.bytes > self.grid.storage(self.site.matrix_shape).bytes
        return StoredLayer(self.site.parameter, str(self.grid), self.stored, self.bytes, self._reason() if told else "")

    def _reason(self) -> str:
        name, bits = self.grid.format.tokens[0], self.grid.bits
        if self.form == PLAIN:
            return f"ONNX Runtime takes no {name}; stored dequantized in float32"
        if self.kernels == VNNI:
            return "stored as int8 for processors with VNNI; int8 kernels overflow on x86 without; scales are float32"
        if self.shift:
            return "stored with zero points, as int8 kernels overflow on processors without VNNI; scales are float32"
        if self.type.bits != bits:
            return f"ONNX Runtime takes no {name}; stored as {self.type.name}, with scales in float32"
        if self.form == NBITS and not isinstance(self.grid.granularity, PerGroup):
            return f"MatMulNBits takes a scale per {self.block} weights, in float32"
        if self.form == NBITS and self.site.matrix_shape[1] % self.block:
            return "scales are float32, and last blocks are filled up"
        return "scales are float32"


def _packed(count: int, bits: int) -> int:
    return math.ceil(count * bits / 8)


def choose(plan: Plan, opset: int | None, linears: str, kernels: str = PORTABLE) -> tuple[tuple[Choice, ...], int]:
    """Return a choice for each site, and the opset of the file.

    Args:
        plan: a grid per site.
        opset: as asked for; None for the least that holds the plan.
        linears: ``nbits`` for `MatMulNBits` wherever it goes, ``qdq`` for nowhere, ``auto`` where it is faster.
        kernels: ``portable`` for 8-bit weights that run right on any processor beside static 8-bit activations,
            ``vnni`` for those that run fast on processors with VNNI, and overflow on x86 without it.

    Raises:
        ExportError: the opset is too old for a grid, or an option has a value that is not known.
    """
    for name, value, known in (("linears", linears, LINEARS), ("kernels", kernels, KERNELS)):
        if value not in known:
            raise ExportError(f"{name}='{value}' is unknown; choose {', '.join(known)}")
    if opset is not None and not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise ExportError(
            f"opset {opset} cannot be written; choose {OLDEST_OPSET} to {NEWEST_OPSET}, or none for the least that "
            "holds the plan"
        )
    pairs = zip(plan.inventory.sites, plan.grids, strict=True)
    inputs = plan.activation_grids
    found = tuple(_choose(site, grid, linears, kernels, inputs.get(site.name)) for site, grid in pairs)
    needs = [(_opset(each), each) for each in found]
    for needed, each in needs:
        if opset is not None and needed > opset:
            what = each.type.name + (" in groups" if each.block else "")
            raise ExportError(
                f"opset {opset} has no {what}, which '{each.site.name}' at {each.grid} needs; ask for opset {needed} "
                "or newer, or leave it out"
            )
    return found, opset or max(OLDEST_OPSET, *(needed for needed, _ in needs))


def _opset(choice: Choice) -> int:
    if choice.form in (NBITS, PLAIN):
        return OLDEST_OPSET
    return max(choice.type.opset, 21 if choice.block else 0)


def _choose(site: Site, grid: Grid, linears: str, kernels: str, inputs: ActivationGrid | None) -> Choice:
    dtype = grid.format.value_dtype
    if dtype is not None:
        return Choice(site, grid, OnnxType(_STORED[dtype], 8 * dtype.itemsize, OLDEST_OPSET), PLAIN)
    type = _type(grid)
    if type is None:
        return Choice(site, grid, OnnxType("float32", 32, OLDEST_OPSET), PLAIN)
    group = grid.granularity.size if isinstance(grid.granularity, PerGroup) else 0
    if group >= site.matrix_shape[1]:  # one group is the whole channel
        group = 0
    nbits = type.name in ("int2", "int4", "int8", "uint2", "uint4", "uint8") and group in (0, 16, 32, 64, 128, 256)
    fused = inputs is not None and not inputs.dynamic and inputs.bits <= 8 and type.name in ("int8", "uint8")
    if fused and _may_overflow(grid):
        return _for_kernels(site, grid, type.name, kernels, group)
    if linears == QDQ or site.kind != "linear" or site.aliases or inputs is not None or not nbits:
        return Choice(site, grid, type, QDQ, group)
    if linears == "auto" and site.weights < _LEAST_WEIGHTS:
        return Choice(site, grid, type, QDQ, group)
    return Choice(site, grid, type, NBITS, group or _block(site.matrix_shape[1]))


def _for_kernels(site: Site, grid: Grid, planned: str, kernels: str, group: int) -> Choice:
    """Return the 8-bit type that `kernels` asks for, with levels shifted into it where the plan's type is the other."""
    wanted = OnnxType("int8" if kernels == VNNI else "uint8", 8, 13)
    shift = 0 if wanted.name == planned else 128 if planned == "int8" else -128
    return Choice(site, grid, wanted, QDQ, group, shift, kernels)


def _may_overflow(grid: Grid) -> bool:
    """Whether two products of a level with an 8-bit activation may exceed 16 bits: not with 7 bits or fewer."""
    levels = grid.format.levels
    return levels is not None and 2 * 255 * float(levels.abs().max()) > 2**15 - 1


def _block(fan_in: int) -> int:
    """Return the largest block that divides a channel, so that none is filled up; the least one where none does."""
    return next((size for size in _BLOCKS if fan_in % size == 0), _BLOCKS[-1])


def _type(grid: Grid) -> OnnxType | None:
    levels = grid.format.levels
    if levels is None or not isinstance(grid.granularity, PerTensor | PerChannel | PerGroup):
        return None
    if bool((levels == levels.round()).all()):
        low, high = int(levels[0]), int(levels[-1])
        for type in _INTEGERS:
            half = 1 << type.bits - 1
            if grid.format.has_zero_point and low >= 0 and high < 2 * half:
                return OnnxType(f"u{type.name}", type.bits, type.opset)
            if not grid.format.has_zero_point and -half <= low and high < half:
                return type
        return None
    return next((type for type, dtype in _SMALL_FLOATS if _holds(dtype, levels)), None)


def _holds(dtype: torch.dtype, levels: Tensor) -> bool:
    return torch.equal(levels.to(dtype).double(), levels)
