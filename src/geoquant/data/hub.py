"""Where are the parquet files of a data set?

Looks in this order: a folder given by its path, the mirror ``$GEOQUANT_DATA_DIR/<short name>``, the Hugging Face Hub.
The Hub needs the extra ``hf`` and a network; a snapshot that was fetched before is found without one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from geoquant.data.images import PixelStatistics
from geoquant.errors import DataError, MissingExtraError, suggest


@dataclass(frozen=True)
class KnownSet:
    """A data set that geoquant knows by name.

    Attributes:
        name: the short name, also the folder in a mirror.
        hub: the name on the Hugging Face Hub.
        config: which of its configurations, where it has several.
        statistics: of the pixels of its train split.
    """

    name: str
    hub: str
    config: str | None
    statistics: PixelStatistics


KNOWN_SETS = (
    KnownSet("mnist", "ylecun/mnist", None, PixelStatistics((0.1307,), (0.3081,))),
    KnownSet("fashion_mnist", "zalando-datasets/fashion_mnist", None, PixelStatistics((0.2860,), (0.3530,))),
    KnownSet("cifar10", "uoft-cs/cifar10", None, PixelStatistics((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))),
    KnownSet(
        "svhn",
        "ufldl-stanford/svhn",
        "cropped_digits",
        PixelStatistics((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    ),
)

_NAME = re.compile(r"(?P<owner>[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")
_SHARD = re.compile(r"-(\d+)-of-(\d+)\.parquet$")


@dataclass(frozen=True)
class Location:
    """The parquet files of one split, in order, and what is known of the set."""

    name: str
    files: tuple[Path, ...]
    known: KnownSet | None


def find_known(name: str) -> KnownSet | None:
    """Return the known set of that short or Hub name.

    >>> find_known("uoft-cs/cifar10") is find_known("cifar10")
    True
    """
    return next((known for known in KNOWN_SETS if name in (known.name, known.hub)), None)


def locate(name: str | Path, split: str) -> Location:
    """Find the parquet files of a data set.

    Args:
        name: a folder, a short name such as ``cifar10``, or a Hub name such as ``uoft-cs/cifar10``.
        split: ``train`` or ``test``; a folder may have others.

    Raises:
        DataError: nothing is there, a shard is missing, or the Hub cannot be reached.
        MissingExtraError: the Hub is needed and huggingface_hub is not installed.
    """
    known = find_known(str(name))
    _check_split(split, known)
    short = known.name if known else Path(name).expanduser().name
    config = known.config if known else None
    places = tuple(_local_folders(name, short))
    for folder in places:
        files = split_files(folder, split, config)
        if files:
            return Location(short, files, known)
    named = _NAME.fullmatch(str(name))
    if known is None and (places or named is None or named["owner"] is None):
        raise DataError(_not_found(name, split, places))
    hub_name = known.hub if known else str(name)
    files = split_files(_download(hub_name, split, config), split, config)
    if not files:
        raise DataError(f"the data set {hub_name} on the Hub has no files {split}-*.parquet; {_advice(short, split)}")
    return Location(short, files, known)


def split_files(folder: Path, split: str, config: str | None = None) -> tuple[Path, ...]:
    """Return the shards of `split` below `folder`, in order; empty when there are none.

    Args:
        folder: searched with all its subfolders, since the Hub nests files as ``plain_text/train-*.parquet``.
        split: the first part of the file names.
        config: the subfolder to prefer where several hold such files.

    Raises:
        DataError: several subfolders hold the split, or some of its shards are missing.
    """
    found = sorted([*folder.rglob(f"{split}-*.parquet"), *folder.rglob(f"{split}.parquet")])
    found = [file for file in found if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    parents = sorted({file.parent for file in found})
    if len(parents) > 1:
        parents = [parent for parent in parents if parent.name == config] or parents
    if len(parents) > 1:
        names = ", ".join(str(parent.relative_to(folder)) for parent in parents)
        raise DataError(f"{folder} holds {split} files in several folders ({names}); pass one of them")
    files = tuple(file for file in found if file.parent == parents[0])
    _check_shards(folder, files)
    return files


def _check_shards(folder: Path, files: Sequence[Path]) -> None:
    matches = [match for match in (_SHARD.search(file.name) for file in files) if match]
    expected = max((int(match[2]) for match in matches), default=0)
    missing = expected - len({match[1] for match in matches})
    if missing > 0:
        raise DataError(f"{folder} lacks {missing} of {expected} files like {files[0].name}; fetch the rest")


def _check_split(split: str, known: KnownSet | None) -> None:
    if known is not None and split not in ("train", "test"):
        raise DataError(f"{known.name} has no split {split!r}; expected 'train' or 'test'")
    if not split.isidentifier():
        raise DataError(f"{split!r} is no name of a split; expected one such as 'train' or 'test'")


def _local_folders(name: str | Path, short: str) -> Iterator[Path]:
    given = Path(name).expanduser()
    if given.is_dir():
        yield given
    mirror = os.environ.get("GEOQUANT_DATA_DIR")
    if mirror and _NAME.fullmatch(str(name)):
        folder = Path(mirror).expanduser() / short
        if folder.is_dir():
            yield folder


def _not_found(name: str | Path, split: str, places: Sequence[Path]) -> str:
    if not places:
        hint = suggest(str(name), [known.name for known in KNOWN_SETS] + ["digits"])
        mirror = os.environ.get("GEOQUANT_DATA_DIR")
        tried = f"a folder in GEOQUANT_DATA_DIR={mirror}" if mirror else "a folder in GEOQUANT_DATA_DIR (not set)"
        return f"'{name}' is no folder, no known data set{hint}, and not {tried}"
    if next(places[0].glob("*.txt"), None) and not next(places[0].rglob("*.parquet"), None):
        return f"{places[0]} holds text: text files need a tokenizer; pass a callable that gives batches"
    return f"{places[0]} has no files {split}-*.parquet; expected the layout of the Hugging Face Hub"


def _advice(short: str, split: str) -> str:
    return f"set GEOQUANT_DATA_DIR to a folder that holds {short}/{split}-*.parquet"


def _download(hub_name: str, split: str, config: str | None) -> Path:
    """Fetch (or find in huggingface_hub's own cache) the parquet files of one split; return the snapshot's folder."""
    short = hub_name.split("/")[-1]
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MissingExtraError(
            f"'{hub_name}' is not on this machine and fetching it needs huggingface_hub: "
            f"pip install geoquant[hf], or {_advice(short, split)}"
        ) from error
    depths = (f"{config}/",) if config else ("", "*/")
    patterns = [f"{depth}{split}{rest}.parquet" for depth in depths for rest in ("", "-*")]
    try:
        return Path(snapshot_download(hub_name, repo_type="dataset", allow_patterns=patterns))
    except Exception as error:  # its HTTP library, and so its exceptions, change from version to version
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"cannot fetch '{hub_name}' from the Hugging Face Hub ({type(error).__name__}: {reason}); "
            f"{_advice(short, split)}"
        ) from error
