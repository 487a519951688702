"""Which weights can compressed-tensors hold in its ``pack-quantized`` form, and in how many bytes?

That form is integers of 2 to 8 bits, one scale a row or a group of a row, with or without integer zero points, in
linear layers. A grid goes there when its levels are such integers; every value is then the same. Ternary and binary
weights take 2 bits, one scale for a whole matrix becomes one scale a row. Zero points become one more bit, because
transformers 5 loads none; they may be kept for vLLM. Rows are padded to 32 bits. What cannot go is refused by name;
embeddings, which engines read unpacked, and weights in float stay dense.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from geoquant.errors import ExportError, LayerNameError
from geoquant.export.protocol import StoredLayer, need
from geoquant.export.states import refuse_activations
from geoquant.grids import SCALE_DTYPES, Grid, PerGroup, PerTensor, QuantizedMatrix
from geoquant.models import FUSED_LAYERS, Site, fused_groups
from geoquant.plan import Plan


@dataclass(frozen=True)
class Packing:
    """How the codes of one weight are packed.

    Attributes:
        bits: 2 to 8.
        symmetric: without zero points.
        group: weights that share a scale; None for a whole row.
    """

    bits: int
    symmetric: bool
    group: int | None

    def arguments(self) -> dict[str, Any]:
        """Return the library's arguments for it."""
        shared = {"strategy": "channel"} if self.group is None else {"strategy": "group", "group_size": self.group}
        return {"num_bits": self.bits, "type": "int", "symmetric": self.symmetric, **shared}

    @property
    def label(self) -> str:
        """What tables call it.

        >>> Packing(3, False, 32).label
        'int3 affine'
        """
        return f"int{self.bits}" + ("" if self.symmetric else " affine")

    def bytes(self, shape: tuple[int, int], scale_bytes: int) -> int:
        """Return bytes of codes, scales and zero points of a matrix (channels, fan_in)."""
        channels, fan_in = shape
        groups = 1 if self.group is None else fan_in // self.group
        codes = channels * 4 * math.ceil(fan_in * self.bits / 32)
        zeros = 0 if self.symmetric else groups * 4 * math.ceil(channels * self.bits / 32)
        return codes + channels * groups * scale_bytes + zeros


def packing(site: Site, grid: Grid, zeros: str = "widen") -> Packing | None:
    """Return how `site` is packed, or None when it stays dense.

    Args:
        site: where.
        grid: what.
        zeros: what becomes of zero points: ``widen`` (a bit more, none left) or ``keep``.

    Raises:
        ExportError: neither is possible.

    >>> site = Site("up_proj", "up_proj.weight", "linear", (4, 64))
    >>> packing(site, Grid.parse("int3:group32"))
    Packing(bits=3, symmetric=True, group=32)
    >>> packing(site, Grid.parse("ternary"))
    Packing(bits=2, symmetric=True, group=None)
    >>> packing(site, Grid.parse("int16"))
    Traceback (most recent call last):
    ...
    geoquant.errors.ExportError: 'up_proj' is on the grid int16; only integers of 2 to 8 bits are packed
    """
    if grid.format.value_dtype is not None or site.kind == "embedding":
        return None
    if site.kind != "linear" or site.view != "rows" or site.aliases:
        kind = "shared by several layers" if site.aliases else f"a {site.kind} weight ({site.view})"
        raise ExportError(
            f"'{site.name}' is {kind}; only weights of one linear layer each are packed, so give it fp16 or fp32"
        )
    if zeros not in ("widen", "keep"):
        raise ExportError(f"zero_points={zeros} is not known; zero points may be 'widen'ed away or 'keep' their place")
    kept = grid.format.has_zero_point and zeros == "keep"
    bits = _integer_bits(grid, kept)
    if bits is None:
        more = "; its zero points would take a ninth bit" if grid.format.has_zero_point and grid.bits == 8 else ""
        raise ExportError(f"'{site.name}' is on the grid {grid}; only integers of 2 to 8 bits are packed{more}")
    return Packing(bits, not kept, _group(site, grid))


def _integer_bits(grid: Grid, kept: bool) -> int | None:
    """Return the fewest bits, 2 to 8, that hold all levels; None when these are no such integers.

    Without its zero point z an affine level q becomes q − z, anything between −(2^b − 1) and 2^b − 1.
    """
    levels = grid.format.levels
    if levels is None or not torch.equal(levels, levels.round()):
        return None
    low, high = int(levels[0]), int(levels[-1])
    if kept:
        return next((bits for bits in range(2, 9) if low == 0 and high < 2**bits), None)
    low = low - high if grid.format.has_zero_point else low
    return next((bits for bits in range(2, 9) if -(2 ** (bits - 1)) <= low and high < 2 ** (bits - 1)), None)


def _group(site: Site, grid: Grid) -> int | None:
    fan_in = site.matrix_shape[1]
    if not isinstance(grid.granularity, PerGroup) or grid.granularity.size >= fan_in:
        return None
    if fan_in % grid.granularity.size:
        raise ExportError(
            f"'{site.name}' has rows of {fan_in} weights, which groups of {grid.granularity.size} do not divide, as "
            f"engines want it; choose a grid per channel, or a group size that divides {fan_in}"
        )
    return grid.granularity.size


def stored_scale(grid: Grid) -> torch.dtype:
    """Return the float dtype in which scales are written: that of the grid; bfloat16 holds every power of two."""
    dtype = SCALE_DTYPES[grid.scale_dtype].stored_as
    return dtype if dtype.is_floating_point else torch.bfloat16


def scheme(packed: Packing, targets: list[str]) -> Any:
    """Return the library's scheme for `packed`, applied to the modules named `targets`."""
    quantization = need("compressed_tensors.quantization", "hf")
    weights = quantization.QuantizationArgs(**packed.arguments())
    return quantization.QuantizationScheme(targets=targets, weights=weights, format="pack-quantized")


def pack(matrix: QuantizedMatrix, packed: Packing) -> dict[str, Tensor]:
    """Return the library's tensors of one weight, by the suffix after the layer's name.

    Scales of zero become one, with codes that mean zero, since the library divides by scales.
    """
    scale, zero = matrix.scales.scale, matrix.scales.zero
    if isinstance(matrix.grid.granularity, PerTensor):
        scale = scale.expand(len(matrix.codes), 1)
        zero = None if zero is None else zero.expand(len(matrix.codes), 1)
    state = {"weight": matrix.dequantize(), "weight_scale": torch.where(scale == 0, 1.0, scale)}
    if zero is not None and not packed.symmetric:
        state["weight_zero_point"] = (zero - 2 ** (packed.bits - 1)).to(torch.int8)
    parts: dict[str, Tensor] = _compressor().compress(state, scheme(packed, []))
    parts["weight_scale"] = parts["weight_scale"].to(stored_scale(matrix.grid))
    return parts


def unpack(parts: dict[str, Tensor], packed: Packing, dtype: torch.dtype) -> Tensor:
    """Return the matrix that the library decodes in a model of `dtype`."""
    state = {**parts, "weight_scale": parts["weight_scale"].to(dtype)}
    weight: Tensor = _compressor().decompress(state, scheme(packed, []))["weight"]
    return weight


def _compressor() -> Any:
    compressors = need("compressed_tensors.compressors", "hf")
    return compressors.BaseCompressor.get_value_from_registry("pack-quantized")


def dense_dtype(plan: Plan, grid: Grid) -> torch.dtype:
    """Return the dtype of a weight that stays dense: its grid's, or that of the model's other tensors."""
    if grid.format.value_dtype is not None:
        return grid.format.value_dtype
    names = [record.dtype for record in plan.inventory.others if record.dtype in ("float32", "float16", "bfloat16")]
    return getattr(torch, max(sorted(set(names)), key=names.count, default="float32"))  # type: ignore[no-any-return]


def foretell(plan: Plan, fused: str, zeros: str) -> tuple[StoredLayer, ...]:
    """Say how each weight of `plan` will be stored, after checking that it can be.

    Raises:
        ExportError: a grid or a layer cannot be stored, activations are quantized, or fused layers differ.
    """
    refuse_activations(plan, "pack-quantized holds weights only")
    packings = packings_of(plan, zeros)
    check_fused({site.name: packed for site, packed in packings.items()}, fused)
    pairs = zip(packings.items(), plan.grids, strict=True)
    return tuple(_layer(plan, site, grid, packed) for (site, packed), grid in pairs)


def packings_of(plan: Plan, zeros: str) -> dict[Site, Packing | None]:
    """Return how every site of `plan` is packed, None where it stays dense; errors are those of `packing`."""
    return {site: packing(site, grid, zeros) for site, grid in zip(plan.inventory.sites, plan.grids, strict=True)}


def check_fused(packings: dict[str, Packing | None], fused: str) -> None:
    """Refuse layers that an engine joins into one matrix but that are packed differently; name those that differ.

    >>> check_fused({"q_proj": Packing(4, True, None), "k_proj": Packing(3, True, None)}, r"re:()[qk]_proj")
    Traceback (most recent call last):
    ...
    geoquant.errors.ExportError: vLLM joins q_proj (int4) and k_proj (int3), which must be packed alike; ...
    """
    if fused == "none":
        return
    try:
        groups = fused_groups(list(packings), [fused])
    except LayerNameError as error:
        if fused in FUSED_LAYERS:
            return  # another kind of model: none of its layers are joined
        raise ExportError(str(error)) from error
    differing = [group for group in groups if len({packings[name] for name in group}) > 1]
    if not differing:
        return
    named = " and ".join(f"{name} ({_short(packings[name])})" for name in differing[0])
    more = f" ({len(differing)} such groups)" if len(differing) > 1 else ""
    raise ExportError(
        f"vLLM joins {named}, which must be packed alike{more}; allocate with fused=['{fused}'] (--fuse {fused}), or "
        "export for transformers only with fused='none'"
    )


def _short(packed: Packing | None) -> str:
    if packed is None:
        return "float"
    group = "" if packed.group is None else f", groups of {packed.group}"
    return f"{packed.label}{group}"


def _layer(plan: Plan, site: Site, grid: Grid, packed: Packing | None) -> StoredLayer:
    if packed is None:
        return dense_layer(plan, site, grid)
    size = packed.bytes(site.matrix_shape, stored_scale(grid).itemsize)
    planned = sum(part.bytes for part in grid.stored(site.matrix_shape))
    return StoredLayer(site.parameter, str(grid), packed.label, size, _reason(grid, packed) if size > planned else "")


def dense_layer(plan: Plan, site: Site, grid: Grid) -> StoredLayer:
    """Say how a weight that stays dense is stored."""
    dtype = dense_dtype(plan, grid)
    reason = "engines read embeddings unpacked" if grid.format.value_dtype is None else ""
    name = str(dtype).removeprefix("torch.")
    return StoredLayer(site.parameter, str(grid), name, site.weights * dtype.itemsize, reason)


def _reason(grid: Grid, packed: Packing) -> str:
    if packed.symmetric and grid.format.has_zero_point:
        return "zero points became one more bit, since transformers loads none"
    if packed.bits > grid.bits:
        return f"{grid.bits:g}-bit codes take {packed.bits} bits"
    if isinstance(grid.granularity, PerTensor):
        return "one scale a row instead of one for the matrix"
    if stored_scale(grid).itemsize > SCALE_DTYPES[grid.scale_dtype].stored_as.itemsize:
        return "scales of a byte take two"
    return "rows are padded to 32 bits"
