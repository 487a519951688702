"""What can go wrong, as names a caller can catch.

Every error is one sentence (or two) for a person: what came, what was expected, what to do. All of them
derive from `GeoquantError`, which the command line turns into exit code 2; anything else that escapes is
a defect of ours and shows a traceback.

Raising happens before mutation: a function that raises one of these has left the model and the disk as
they were.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GeoquantError(ValueError):
    """Base class of every error that a caller can cause and mend."""


class DataError(GeoquantError):
    """Batches are empty, not finite, of the wrong form, or cannot be found."""


class ModelError(GeoquantError):
    """The model cannot be called, has no quantizable layer, or holds NaN or Inf."""


class WeightsError(ModelError):
    """A weights file has missing, extra or misshapen tensors."""


class LayerNameError(GeoquantError):
    """A layer name or pattern matches nothing."""


class GridError(GeoquantError):
    """An unknown grid, or a grid that cannot hold the given weights."""


class BudgetError(GeoquantError):
    """No plan fits the budget, or the budget makes no sense."""


class PlanError(GeoquantError):
    """A plan does not belong to this model, or asks for what it cannot have."""


class FileFormatError(GeoquantError):
    """A file is truncated, was changed by hand, or is not what its name says."""


class ExportError(GeoquantError):
    """An engine has no type for what the plan asks, does not take a layer, or does not know an option."""


class OutputError(GeoquantError):
    """The result cannot be written: read-only folder, full disk, a file in the way."""


class UnknownNameError(GeoquantError):
    """A registry was asked for a name it does not hold."""


class ClusterError(GeoquantError):
    """Workers in other processes cannot be reached or started."""


class StudyError(GeoquantError):
    """A study is declared wrongly, gave what is no result, or is at work in the same folder."""


class MissingExtraError(GeoquantError):
    """An optional dependency is needed and not installed."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Return a hint such as ``" (did you mean 'int4'?)"``, or all names when few, or nothing.

    >>> suggest("milpp", ["milp", "greedy"])
    " (did you mean 'milp'?)"
    """
    options = sorted(known)
    close = difflib.get_close_matches(name, options, n=1)
    if close:
        return f" (did you mean '{close[0]}'?)"
    if 0 < len(options) <= 12:
        return f" (known: {', '.join(options)})"
    return ""
