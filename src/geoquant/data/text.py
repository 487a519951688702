"""Where is the text of a data set, and where do its documents begin?

Takes a text file, a folder of text files, or parquet files with a column ``text`` (the Hugging Face Hub's layout),
each also below ``$GEOQUANT_DATA_DIR``. Parquet rows are documents; a text file is one document, or several that
``<|endoftext|>`` sets apart. Where a folder holds one file without a split in its name, the first nine tenths of its
characters, up to the end of a line, are ``train`` and the rest is every other split. A single file is one text
whatever the split: whoever names it for calibration must name another for evaluation.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from geoquant.data.hub import locate
from geoquant.data.parquet import read_column_names, read_texts
from geoquant.errors import DataError

TEXT_COLUMN = "text"
SEPARATOR = "<|endoftext|>"
_TRAIN_SHARE = 0.9
_SPLITS = {"train": ("train",), "test": ("test",), "validation": ("validation", "valid", "val")}


@dataclass(frozen=True)
class TextSet:
    """Documents in order, and where they come from.

    >>> TextSet(("Once upon a time", "The end"), "a toy")
    TextSet(2 documents, 23 characters: a toy)
    """

    documents: tuple[str, ...]
    description: str

    def __repr__(self) -> str:
        size = sum(len(document) for document in self.documents)
        return f"TextSet({len(self.documents)} documents, {size} characters: {self.description})"


def holds_text(spec: str | Path) -> bool:
    """Say whether `spec` names a text file, or a folder (or one of the mirror) that holds text files.

    >>> holds_text("story.txt"), holds_text("digits")
    (True, False)
    """
    if str(spec).endswith(".txt"):
        return True
    return any(next(folder.glob("*.txt"), None) is not None for folder in _places(spec) if folder.is_dir())


def load_text(spec: str | Path, split: str) -> TextSet:
    """Read the documents of one split.

    Args:
        spec: a ``.txt`` file, a folder that holds some, or what `geoquant.data.hub.locate` takes (parquet files with a
            column ``text``); paths may be relative to ``$GEOQUANT_DATA_DIR``.
        split: ``train``, ``test`` or ``validation``; a single file has no splits and is read whole.

    Raises:
        DataError: there is no such text, it is not UTF-8, or a folder holds several files for the split.
    """
    found = next((place for place in _places(spec) if place.exists()), None)
    if str(spec).endswith(".txt"):
        if found is None or not found.is_file():
            raise DataError(f"there is no text file {spec} (nor below GEOQUANT_DATA_DIR); check the path")
        return TextSet(_documents(_read(found)), found.name)
    files = [] if found is None else sorted(found.glob("*.txt"))
    if not files:
        place = locate(spec, split)
        return TextSet(tuple(text for text in read_texts(place.files, TEXT_COLUMN) if text), f"{place.name} {split}")
    return _from_folder(files, split)


def is_text_table(files: Sequence[Path]) -> bool:
    """Say whether these parquet files hold documents: a column ``text``."""
    return TEXT_COLUMN in read_column_names(files[0])


def _places(spec: str | Path) -> list[Path]:
    mirror = os.environ.get("GEOQUANT_DATA_DIR")
    given = Path(spec).expanduser()
    return [given, *([Path(mirror).expanduser() / spec] if mirror and not given.is_absolute() else [])]


def _from_folder(files: Sequence[Path], split: str) -> TextSet:
    words = _SPLITS.get(split, (split,))
    folder = files[0].parent
    named = [file for file in files if set(re.split(r"[^a-z]+", file.stem.lower())) & set(words)]
    if len(named) == 1:
        return TextSet(_documents(_read(named[0])), f"{folder.name}/{named[0].name}")
    if named or len(files) > 1:
        listed = ", ".join(file.name for file in named or files)
        raise DataError(f"{folder} holds several texts that may be its {split} split ({listed}); name the file itself")
    text = _read(files[0])
    border = int(_TRAIN_SHARE * len(text))
    border = text.rfind("\n", 0, border) + 1 or border  # lines stay whole: each may be an example
    part, share = (text[:border], "the first 90 %") if split == "train" else (text[border:], "the last 10 %")
    return TextSet(_documents(part), f"{folder.name}/{files[0].name}, {share}")


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot read the text {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not text in UTF-8 ({error.reason} at byte {error.start}); convert it") from error


def _documents(text: str) -> tuple[str, ...]:
    r"""Cut a text at its separators; without any it is one document, as it is.

    >>> _documents("one\n<|endoftext|>\ntwo\n<|endoftext|>")
    ('one', 'two')
    """
    if SEPARATOR not in text:
        return (text,) if text else ()
    return tuple(part.strip() for part in text.split(SEPARATOR) if part.strip())
