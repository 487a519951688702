"""Where do the results of cells lie, and is a cell done?

One file a cell, ``FOLDER/STUDY/KEY.json``, written in one step and checksummed: a killed run leaves whole files or
none. A failed cell leaves a file too, with its error. A file counts for the cell whose key it is named by, and nothing
else; what a changed configuration leaves behind stays, unread.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from geoquant.errors import FileFormatError, OutputError, StudyError
from geoquant.storage import read_document, write_document
from geoquant.study.declaration import Cell
from geoquant.study.results import Result

_KIND = "study-cell"
_VERSION = 1


@dataclass(frozen=True)
class Failure:
    """Why a cell has no result.

    Attributes:
        kind: class of the error, or ``WorkerDied``.
        message: of the error.
        traceback: where it happened, in Python's words; empty when nobody knows.
    """

    kind: str
    message: str
    traceback: str = ""


@dataclass(frozen=True)
class Outcome:
    """What came of running a cell once.

    Attributes:
        status: ``done`` or ``failed``.
        metrics: plain JSON; empty when failed.
        rows: the table that it brought along.
        error: None when done.
        seconds: wall time.
        versions: of geoquant, torch and Python.
        date: when it ended, ISO 8601, UTC.
    """

    status: Literal["done", "failed"]
    metrics: Mapping[str, Any]
    rows: tuple[Mapping[str, Any], ...]
    error: Failure | None
    seconds: float
    versions: Mapping[str, str]
    date: str

    def result(self, cell: Cell) -> Result:
        """Return what studies read."""
        return Result(cell.configuration, self.metrics, self.rows, self.seconds)


@dataclass(frozen=True)
class Store:
    """Cells on disk.

    Attributes:
        folder: holds a folder for each study.
    """

    folder: Path

    def path(self, cell: Cell) -> Path:
        """Return where a cell lies or will."""
        return self.folder / cell.study / f"{cell.key}.json"

    def write(self, cell: Cell, outcome: Outcome) -> Path:
        """Write what came of a cell, in one step, over what was there.

        Raises:
            OutputError: the folder cannot be written.
        """
        content = {
            "study": cell.study,
            "study_version": cell.version,
            "key": cell.key,
            "configuration": dict(cell.configuration),
            **asdict(outcome),
            "rows": [dict(row) for row in outcome.rows],
        }
        path = self.path(cell)
        write_document(path, _KIND, _VERSION, content)
        return path

    def read(self, cell: Cell) -> Outcome | None:
        """Return what came of a cell, or None when it has not run.

        Raises:
            FileFormatError: the file was changed by hand, or belongs to another cell.
        """
        path = self.path(cell)
        if not path.exists():
            return None
        _, content = read_document(path, _KIND, _VERSION)
        if content["key"] != cell.key:
            raise FileFormatError(f"{path} holds the cell {content['key']}; remove the file, then run the study again")
        error = content["error"]
        return Outcome(
            content["status"],
            content["metrics"],
            tuple(content["rows"]),
            None if error is None else Failure(**error),
            content["seconds"],
            content["versions"],
            content["date"],
        )

    def read_all(self, cells: Iterable[Cell]) -> dict[str, Outcome]:
        """Return what came of those cells that have run, by key, in the order of `cells`."""
        found = ((cell.key, self.read(cell)) for cell in cells)
        return {key: outcome for key, outcome in found if outcome is not None}

    @contextmanager
    def working(self, study: str) -> Iterator[None]:
        """Hold the folder of a study, so that two runs do not do the same work; ends with the process, however it ends.

        Half-written files that a killed run left are removed.

        Raises:
            StudyError: another process holds it.
            OutputError: the folder cannot be written.
        """
        place = self.folder / study
        try:
            place.mkdir(parents=True, exist_ok=True)
            file = (place / ".lock").open("w")
        except OSError as error:
            raise OutputError(f"cannot write the folder {place}: {error.strerror}; choose another place") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StudyError(
                    f"another run of the study '{study}' is at work in {self.folder}; wait for it or choose another "
                    "folder; for more workers use jobs"
                ) from error
            for left in place.glob(".*.json.*"):
                left.unlink(missing_ok=True)
            yield
