"""What does a file or a folder hold, whoever wrote it? Read, checked against its checksums, never executed.

Every registered format is asked first; what is left are plain safetensors, whose headers, lengths and index are
checked.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from geoquant.errors import FileFormatError
from geoquant.export.packed import PLAN_FILE
from geoquant.export.protocol import EXPORTERS, Contents, StoredLayer, recognize
from geoquant.export.shards import find_shards, opened, verify
from geoquant.plan import Plan, align
from geoquant.storage import Json

PLAIN = "safetensors"
_PICKLES = {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle"}


def inspect(path: Path | str) -> Contents:
    """Return what `path` holds: an artifact of any registered format, or plain safetensors (a file, or shards).

    Raises:
        FileFormatError: nothing is there, a file is cut short or was changed, a shard is missing, or none knows it.
        MissingExtraError: the package that reads the format is not installed.
    """
    path = Path(path)
    if not path.exists():
        raise FileFormatError(f"there is no file or folder {path}; name what save, export or from_pretrained wrote")
    exporter = recognize(path)
    if exporter is None:
        return _plain(path)
    found = exporter.contents(path)
    if path.is_dir() and (path / PLAN_FILE).is_file():
        Plan.load(path / PLAN_FILE)
        found = dataclasses.replace(found, notes=(*found.notes, f"{PLAN_FILE} matches its checksum"))
    return found


def _plain(path: Path) -> Contents:
    if path.is_file() and path.suffix != ".safetensors":
        what = "a pickle by its name, which could execute code; convert it to" if path.suffix in _PICKLES else "none of"
        raise FileFormatError(f"{path} is {what} the kinds that are read: {', '.join([*EXPORTERS, PLAIN])}")
    layers: list[StoredLayer] = []
    others, shards, size = 0, find_shards(path), 0
    for shard in shards:
        size += shard.stat().st_size
        with opened(shard) as stored:
            verify(shard, stored)
            for entry in map(stored.entry, stored):
                if len(entry.shape) < 2:
                    others += entry.bytes
                else:
                    layers.append(StoredLayer(entry.name, "", entry.dtype, entry.bytes))
    note = f"plain tensors without a checksum, in {len(shards)} whole file{'s' * (len(shards) > 1)}"
    return Contents(PLAIN, path, size, tuple(layers), others, (note,))


def contents_text(contents: Contents) -> str:
    """Return a table of the layers, totals by type, and what was checked."""
    rows = [["layer", "planned", "stored", "bytes", ""]]
    rows += [[each.name, each.grid, each.stored, f"{each.bytes:,}", each.reason] for each in contents.layers]
    sizes: dict[str, list[int]] = {}
    for layer in contents.layers:
        sizes.setdefault(layer.stored, []).append(layer.bytes)
    totals = [f"{kind}: {len(parts)} of {sum(parts):,} bytes" for kind, parts in sorted(sizes.items())]
    return "\n".join(
        [
            align(rows, (False, False, False, True, False)),
            "",
            f"{contents.path} ({contents.format}): {contents.bytes:,} bytes, {contents.others:,} in other tensors",
            "; ".join(totals) or "no weights",
            *contents.notes,
        ]
    )


def contents_document(contents: Contents) -> Json:
    """Return the same as plain JSON values."""
    document = dataclasses.asdict(contents)
    return {**document, "path": str(contents.path), "layers": list(document["layers"]), "notes": list(contents.notes)}
