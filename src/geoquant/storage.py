"""How are results written so that nobody ever reads half a file?

Everything goes to a temporary file beside its target, is flushed to disk, and is renamed over the target
in one step. A full disk, a read-only folder or a killed process leaves the old file (or none).
JSON documents carry the SHA-256 of their own canonical text, so a truncated or hand-edited document says
so when it is read.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from geoquant.errors import FileFormatError, OutputError

Json = dict[str, Any]


@contextmanager
def atomic_path(target: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `target`; rename it over `target` when the block ends well.

    Raises `OutputError` (one sentence, nothing left behind) when the folder cannot be written or the
    disk is full.
    """
    target = Path(target)
    with _parents(target):
        if target.is_dir():
            raise OutputError(f"cannot write the file {target}: a folder of that name is in the way")
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: Path | str) -> Iterator[Path]:
    """Yield an empty folder beside `target`; it becomes `target` when the block ends well.

    Raises `OutputError` (one sentence, nothing left behind) when `target` holds something already, the folder cannot be
    written or the disk is full.
    """
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OutputError(f"cannot write the folder {target}: something of that name is there; choose another place")
    with _parents(target):
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        try:
            yield temporary
            for path in temporary.rglob("*"):
                path.chmod((0o777 if path.is_dir() else 0o666) & ~_umask())
            temporary.chmod(0o777 & ~_umask())
            temporary.replace(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _parents(target: Path) -> Iterator[None]:
    """Make the folders above `target` for the block; those that it leaves empty go again, and failures speak."""
    created = [folder for folder in target.parents if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"cannot write {target}: {reason}; nothing was written, choose another place") from error
    finally:
        for folder in created:
            with suppress(OSError):
                folder.rmdir()  # only goes when empty, so only after a failure


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def write_text(target: Path | str, text: str) -> None:
    """Write `text` to `target` in UTF-8, atomically."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def canonical(document: Json) -> str:
    """Return the one JSON text of `document`: sorted keys, no spaces, finite numbers only.

    >>> canonical({"b": 1, "a": [1.5, None]})
    '{"a":[1.5,null],"b":1}'
    """
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def finite(value: Any) -> Any:
    """Replace every number that JSON does not know by its name, which pydantic reads back as that number.

    >>> finite({"a": [1.5, float("inf")]})
    {'a': [1.5, 'inf']}
    """
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [finite(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def digest(document: Json) -> str:
    """Return the SHA-256 of the canonical text of `document`, in hexadecimal."""
    return hashlib.sha256(canonical(document).encode()).hexdigest()


def write_document(target: Path | str, kind: str, version: int, content: Json) -> None:
    """Write a versioned, checksummed JSON document, atomically and readable by a person."""
    body = {"format": f"geoquant-{kind}", "version": version, "content": content}
    write_text(target, json.dumps({**body, "sha256": digest(body)}, indent=1, allow_nan=False, ensure_ascii=False))


def read_document(source: Path | str, kind: str, newest_version: int) -> tuple[int, Json]:
    """Read what `write_document` wrote; return its version and its content.

    Raises `FileFormatError` when the file is missing, truncated, of another kind, newer than this
    geoquant, or no longer matches its checksum.
    """
    source = Path(source)
    try:
        document = json.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileFormatError(f"cannot read the {kind} {source}: {error.strerror}") from error
    except ValueError as error:
        raise FileFormatError(f"{source} is not a complete JSON file ({error}); write the {kind} again") from error
    if not isinstance(document, dict) or document.get("format") != f"geoquant-{kind}":
        found = document.get("format", "no format at all") if isinstance(document, dict) else type(document).__name__
        raise FileFormatError(f"{source} is not a geoquant {kind}: it says {found!r}")
    stated = document.pop("sha256", None)
    if stated != digest(document):
        raise FileFormatError(
            f"{source} was changed after geoquant wrote it (its checksum does not match); write the {kind} again"
        )
    version = document["version"]
    if not isinstance(version, int) or version > newest_version:
        raise FileFormatError(f"{source} has version {version}, this geoquant reads up to {newest_version}; upgrade")
    return version, document["content"]
