"""Running one cell, wherever that is: in this process, in another, on another machine.

The answer is always an outcome, never an exception of the cell's: a failed cell is a result too. What torch draws
without a seed comes from the cell's key, so that neither the order of cells nor the number of workers changes a figure.
"""

from __future__ import annotations

import math
import platform
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from numbers import Integral, Real
from typing import Any

import torch

import geoquant
from geoquant.errors import StudyError
from geoquant.study.declaration import Cell, Configuration
from geoquant.study.store import Failure, Outcome

Run = Callable[[Configuration], Mapping[str, Any]]


def execute(run: Run, cell: Cell) -> Outcome:
    """Run a cell and return what came of it."""
    start = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(cell.key[:8], 16))
        try:
            metrics, rows = checked(run(cell.configuration))
        except Exception as error:
            failure = Failure(type(error).__name__, str(error), traceback.format_exc(limit=-12))
            return _outcome(start, error=failure)
    return _outcome(start, metrics, rows)


def died(reason: str, seconds: float = 0.0) -> Outcome:
    """Return the outcome of a cell whose worker died."""
    return _outcome(time.perf_counter() - seconds, error=Failure("WorkerDied", reason))


def checked(found: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[dict[str, Any], ...]]:
    """Return metrics and rows as plain JSON, where numbers that are not finite are None.

    Raises:
        StudyError: something is no JSON.

    >>> checked({"accuracy": 0.5, "loss": float("nan"), "rows": [{"layer": "a", "bits": 3}]})
    ({'accuracy': 0.5, 'loss': None}, ({'layer': 'a', 'bits': 3},))
    >>> checked({"weights": {1, 2}})
    Traceback (most recent call last):
    ...
    geoquant.errors.StudyError: the metric 'weights' is a set; expected numbers, texts, lists and objects of these
    """
    if not isinstance(found, Mapping):
        raise StudyError(f"a cell returned {type(found).__name__}; expected a mapping of metrics")
    plain = {str(name): _plain(value, str(name)) for name, value in found.items()}
    rows = plain.pop("rows", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise StudyError("'rows' is no table; expected a list with an object for each row")
    return plain, tuple(rows)


def _plain(value: Any, name: str) -> Any:
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):  # numpy's scalars are such, too
        return float(value) if math.isfinite(value) else None
    if isinstance(value, (list, tuple)):
        return [_plain(each, name) for each in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(each, name) for key, each in value.items()}
    raise StudyError(
        f"the metric '{name}' is a {type(value).__name__}; expected numbers, texts, lists and objects of these"
    )


def _outcome(
    start: float,
    metrics: Mapping[str, Any] | None = None,
    rows: tuple[dict[str, Any], ...] = (),
    error: Failure | None = None,
) -> Outcome:
    versions = {
        "geoquant": geoquant.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    return Outcome(
        "done" if error is None else "failed",
        {} if metrics is None else metrics,
        rows,
        error,
        time.perf_counter() - start,
        versions,
        datetime.now(UTC).isoformat(timespec="seconds"),
    )
