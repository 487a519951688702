"""What will the artifact on disk look like, to the byte, before it is written?

The artifact is one safetensors file: an 8-byte length, a JSON header padded to 8 bytes, then the tensors.
Its header carries, under the one metadata key ``geoquant``, which grid each weight has. Everything here
follows from an inventory and a grid per site, so a plan knows its size without the model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from geoquant.grids import Grid
from geoquant.models import Inventory, Site
from geoquant.plan.activations import SCALES, ZEROS, Entries, static_count
from geoquant.storage import Json, canonical

# Version 2 has activation grids; files without any are of version 1, and older readers take them.
ARTIFACT_VERSION = 2
METADATA_KEY = "geoquant"

# The library writes tensors in falling order of this list (its dtype enumeration), then by name.
_DTYPE_ORDER = (  # noqa: SIM905 (one line that a person can compare with the library)
    "BOOL F4 F6_E2M3 F6_E3M2 U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 I16 U16 F16 BF16 I32 U32 F32 C64 F64 I64 U64"
).split()
_CODES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "uint16": "U16",
    "int32": "I32",
    "uint32": "U32",
    "int64": "I64",
    "uint64": "U64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
}
_ITEM_BYTES = dict.fromkeys(_DTYPE_ORDER[:9], 1)
_ITEM_BYTES |= dict.fromkeys(("I16", "U16", "F16", "BF16"), 2)
_ITEM_BYTES |= dict.fromkeys(("I32", "U32", "F32"), 4)
_ITEM_BYTES |= dict.fromkeys(("C64", "F64", "I64", "U64"), 8)


@dataclass(frozen=True)
class Entry:
    """One tensor of the file: name, safetensors dtype code, shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size of the tensor's data."""
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]


def site_entries(site: Site, grid: Grid) -> tuple[Entry, ...]:
    """List the tensors that hold one quantized weight."""
    return tuple(
        Entry(f"{site.parameter}.{part.suffix}", _CODES[str(part.dtype).removeprefix("torch.")], part.shape)
        for part in grid.stored(site.matrix_shape)
    )


def activation_tensors(activations: Entries) -> tuple[Entry, ...]:
    """List the tensors that hold the static scales of `activations`."""
    count = static_count(activations)
    return (Entry(SCALES, "F32", (count,)), Entry(ZEROS, "I32", (count,))) if count else ()


def entries(inventory: Inventory, grids: Sequence[Grid], activations: Entries = ()) -> tuple[Entry, ...]:
    """List all tensors of the artifact."""
    parts = [entry for site, grid in zip(inventory.sites, grids, strict=True) for entry in site_entries(site, grid)]
    parts += [Entry(record.name, _CODES[record.dtype], record.shape) for record in inventory.others]
    return (*parts, *activation_tensors(activations))


def description(inventory: Inventory, grids: Sequence[Grid], activations: Entries = ()) -> Json:
    """Return what the header says besides its checksum: format version, each site's grid, folded norms, activations.

    A site is listed as ``parameter: [grid, shape, view, *aliases]``, all that is needed to restore its weight.
    """
    sites = {
        site.parameter: [str(grid), list(site.shape), site.view, *site.aliases]
        for site, grid in zip(inventory.sites, grids, strict=True)
    }
    document: Json = {"version": ARTIFACT_VERSION if activations else 1, "sites": sites}
    if activations:
        document["activations"] = [list(pair) for pair in activations]
    if inventory.folds:
        document["folds"] = [list(pair) for pair in inventory.folds]
    return document


def metadata(described: Json, sha256: str) -> dict[str, str]:
    """Return the metadata of the header: the description and the checksum of description and tensors."""
    return {METADATA_KEY: canonical({**described, "sha256": sha256})}


def file_bytes(tensors: Iterable[Entry], text: dict[str, str]) -> int:
    """Return the exact size of the safetensors file that holds `tensors` and the metadata `text`.

    >>> file_bytes([Entry("w", "U8", (3,))], {})
    67
    """
    ordered, header = file_header(tensors, text)
    return len(header) + sum(entry.bytes for entry in ordered)


def file_header(tensors: Iterable[Entry], text: dict[str, str]) -> tuple[list[Entry], bytes]:
    """Return the tensors in the order in which the file holds their data, and all bytes before the first of them."""
    ordered = sorted(tensors, key=lambda entry: (-_DTYPE_ORDER.index(entry.dtype), entry.name))
    header: dict[str, object] = {"__metadata__": text} if text else {}
    offset = 0
    for entry in ordered:
        header[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.bytes],
        }
        offset += entry.bytes
    said = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    length = 8 * math.ceil(len(said) / 8)
    return ordered, length.to_bytes(8, "little") + said.ljust(length)


def artifact_bytes(inventory: Inventory, grids: Sequence[Grid], activations: Entries = ()) -> int:
    """Return the exact size of the artifact in bytes."""
    text = metadata(description(inventory, grids, activations), "0" * 64)
    return file_bytes(entries(inventory, grids, activations), text)


def least_bytes(site: Site, grid: Grid) -> int:
    """Return bytes that `site` at `grid` adds to the file at least: data, header entries, its grid's name.

    Offsets count one digit each, so sums of this are below the real size by a few bytes an entry: a sound
    relaxation for proving bounds.
    """
    header = 0
    for entry in site_entries(site, grid):
        document = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [0, 0]}
        header += len(json.dumps({entry.name: document}, separators=(",", ":"), ensure_ascii=False).encode()) - 1
    return header + sum(entry.bytes for entry in site_entries(site, grid)) + len(str(grid))


def least_activation_bytes(grid: str | None) -> int:
    """Return what one activation's grid adds to the file: its name, and its scale and zero point where it has them."""
    return 0 if grid is None else len(grid) + 8 * static_count((("", grid),))
