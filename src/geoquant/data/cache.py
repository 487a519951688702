"""Where do decoded images wait for the next run?

In ``$GEOQUANT_CACHE_DIR`` (else ``~/.cache/geoquant``), one ``.npy`` per set and split beside a small checksummed
note. An entry counts only while the source files keep their paths, sizes and times and the array matches
the digest in its note; anything else is decoded again. A cache that cannot be read or written costs time,
never the run. Old entries are not removed.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geoquant.errors import FileFormatError, OutputError
from geoquant.storage import atomic_path, read_document, write_document

_KIND = "image-cache"
_VERSION = 1


def cached(name: str, files: Sequence[Path], decode: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Return the array of `files` from the cache, or decode it and leave it there for the next run.

    Args:
        name: a readable part of the file name, such as ``cifar10-train``.
        files: the files that the array comes from; their paths, sizes and times make the key.
        decode: makes the array.
    """
    folder = cache_folder()
    if folder is None:
        return decode()
    entry = folder / "images" / f"{_safe(name)}-{_key(files)}.npy"
    found = _read(entry)
    if found is not None:
        return found
    array = decode()
    _write(entry, array)
    return array


def cache_folder() -> Path | None:
    """Return the folder that keeps decoded data, or None where there is no home folder to keep it in."""
    chosen = os.environ.get("GEOQUANT_CACHE_DIR")
    try:
        return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "geoquant"
    except RuntimeError:  # pathlib's answer to a user without a home
        return None


def _key(files: Sequence[Path]) -> str:
    facts = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


def _safe(name: str) -> str:
    """Return `name` with everything replaced that a file name should not hold.

    >>> _safe("my set/v2")
    'my_set_v2'
    """
    return re.sub(r"[^\w.-]", "_", name)


def _read(entry: Path) -> NDArray[np.uint8] | None:
    """Map a stored array into memory, or return None when it is absent or not what was written."""
    try:
        _, note = read_document(entry.with_suffix(".json"), _KIND, _VERSION)
        if _digest(entry) != note["sha256"]:
            return None
        array: NDArray[np.uint8] = np.load(entry, mmap_mode="r", allow_pickle=False)
    except (FileFormatError, OSError, ValueError, KeyError):
        return None
    return array


def _write(entry: Path, array: NDArray[np.uint8]) -> None:
    try:
        with atomic_path(entry) as temporary:
            with temporary.open("wb") as file:
                np.save(file, array, allow_pickle=False)
            digest = _digest(temporary)
        write_document(entry.with_suffix(".json"), _KIND, _VERSION, {"sha256": digest})
    except OutputError:
        return  # a full disk or a read-only home must not cost the user the run


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
