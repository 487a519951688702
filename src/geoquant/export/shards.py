"""How do many tensors lie in safetensors files, and are all of them there?

One ``model.safetensors``, or shards with an index beside them, as on the Hugging Face Hub. Files that geoquant writes
carry what each holds and a SHA-256 of it; of others only the form can be checked: the header, the length, the index.
Nothing is read but what is asked for, so a checkpoint may be larger than memory.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from geoquant.errors import FileFormatError, GeoquantError, OutputError
from geoquant.export.packed import WEIGHTS_FILE, checksum
from geoquant.models.pretrained import INDEX_FILE, weight_files
from geoquant.plan import Entry
from geoquant.storage import Json, canonical

NOTE_KEY = "geoquant-export"


class Stored(Mapping[str, Tensor]):
    """The tensors of one open file, each read when it is asked for."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._names = list(file.keys())

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def entry(self, name: str) -> Entry:
        """Return dtype and shape of a tensor without reading it."""
        part = self._file.get_slice(name)
        return Entry(name, part.get_dtype(), tuple(part.get_shape()))

    @property
    def metadata(self) -> dict[str, str]:
        """The texts in the file's header."""
        return dict(self._file.metadata() or {})

    def note(self) -> Json | None:
        """Return what geoquant wrote about the file, or None."""
        text = self.metadata.get(NOTE_KEY)
        if text is None:
            return None
        note = json.loads(text)
        if not isinstance(note, dict) or not isinstance(note.get("sha256"), str):
            raise ValueError("its note is no object with a checksum")
        layers = note.get("layers", {})
        if not isinstance(layers, dict) or not all(_is_pair(said) for said in layers.values()):
            raise ValueError("its note does not say a grid and a reason of each layer")
        return note


def _is_pair(said: object) -> bool:
    return isinstance(said, list) and len(said) == 2 and all(isinstance(text, str) for text in said)


@contextmanager
def opened(path: Path) -> Iterator[Stored]:
    """Open a safetensors file; `FileFormatError` when it is missing, truncated or damaged, then or while it is read."""
    try:
        with safe_open(path, "pt") as file:
            yield Stored(file)
    except GeoquantError:
        raise
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise FileFormatError(f"{path} is not a whole safetensors file ({reason}); copy or write it again") from error


def verify(path: Path, stored: Stored) -> Json | None:
    """Check a file against its own checksum; return its note, or None where it has none.

    Raises:
        FileFormatError: the tensors, or what is said about them, were changed.
    """
    note = stored.note()
    if note is None:
        return None
    stated = note.pop("sha256")
    if checksum(note, stored) != stated:
        raise FileFormatError(f"{path} was changed after it was written (its checksum does not match); write it again")
    return note


def find_shards(path: Path) -> tuple[Path, ...]:
    """Return the safetensors files that make up the checkpoint at `path` (a file or a folder), each of them there.

    Raises:
        FileFormatError: there is none, a shard is missing, or the index is damaged or disagrees with the shards.
    """
    if not path.is_dir():
        return (path,)
    shards = weight_files(path)
    if (path / INDEX_FILE).is_file():
        listed = read_json(path / INDEX_FILE)["weight_map"]
        for shard in shards:
            with opened(shard) as stored:
                held = set(stored)
            lost = [name for name, place in listed.items() if place == shard.name and name not in held]
            if lost:
                raise FileFormatError(
                    f"{shard} lacks {len(lost)} tensors that {INDEX_FILE} lists, such as '{lost[0]}'; copy it again"
                )
    return shards


def read_json(path: Path) -> Json:
    """Read a JSON object; `FileFormatError` when the file is missing, truncated or holds something else."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileFormatError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} is not a complete JSON file ({error}); copy or write it again") from error
    if not isinstance(document, dict):
        raise FileFormatError(f"{path} holds a {type(document).__name__}; expected a JSON object")
    return document


def write_shards(
    folder: Path, tensors: Iterable[tuple[str, Tensor]], describe: Callable[[list[str]], Json], limit: int
) -> None:
    """Write `tensors` into `folder`, a shard of at most `limit` bytes at a time, each with a note and a checksum.

    Args:
        folder: exists and is empty.
        tensors: (name, tensor) pairs; they are taken one by one, and forgotten when their shard is written.
        describe: what to note about a shard, from the names of its tensors.
        limit: bytes; a single larger tensor gets a shard of its own.

    Raises:
        OutputError: the disk is full or the folder cannot be written.
    """
    shards: list[list[str]] = []
    total = size = 0
    pending: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if pending and size + tensor.nbytes > limit:
            shards.append(_write_shard(folder, len(shards), pending, describe))
            pending, size = {}, 0
        pending[name] = tensor.detach().cpu().contiguous()
        size, total = size + tensor.nbytes, total + tensor.nbytes
    shards.append(_write_shard(folder, len(shards), pending, describe))
    if len(shards) == 1:
        (folder / _shard_name(0)).rename(folder / WEIGHTS_FILE)
        return
    places: dict[str, str] = {}
    for number, names in enumerate(shards):
        final = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / _shard_name(number)).rename(folder / final)
        places |= dict.fromkeys(names, final)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=1), encoding="utf-8")


def _shard_name(number: int) -> str:
    return f"shard-{number}.safetensors"


def _write_shard(
    folder: Path, number: int, tensors: dict[str, Tensor], describe: Callable[[list[str]], Json]
) -> list[str]:
    write_file(folder / _shard_name(number), tensors, describe(list(tensors)))
    return list(tensors)


def write_file(
    path: Path, tensors: dict[str, Tensor], note: Json, metadata: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Write one safetensors file with `note` and a checksum of both, beside other `metadata`.

    Raises:
        OutputError: the disk is full or the folder cannot be written.
    """
    text = canonical({**note, "sha256": checksum(note, tensors)})
    try:
        save_file(tensors, path, {**metadata, "format": "pt", NOTE_KEY: text})
        _sort_metadata(path)
    except (SafetensorError, OSError) as error:
        raise OutputError(f"cannot write {path.name}: {error}; nothing was written, choose another place") from error


def _sort_metadata(path: Path) -> None:
    """Order the entries of a header's metadata, which come in any order, so that equal contents make equal files."""
    with path.open("rb+") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
        if len(text) == length:
            file.seek(8)
            file.write(text)
