"""How does ``package.module:callable`` or ``file.py:callable`` on a command line become an object?

Importing runs the user's code with this process's rights, like ``python file.py`` does; so only words that a
person typed come here, never names that a file holds.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from geoquant.errors import GeoquantError, suggest

_FORM = "expected 'package.module:callable' or 'file.py:callable'"


def is_spec(text: str) -> bool:
    """Say whether `text` names an object: something, a colon, and a dotted name.

    >>> is_spec("my_data.py:batches"), is_spec("cifar10"), is_spec("C:/data")
    (True, False, False)
    """
    place, colon, name = text.rpartition(":")
    return bool(colon and place) and all(part.isidentifier() for part in name.split("."))


def import_named(spec: str, error: type[GeoquantError]) -> Any:
    """Import what `spec` names; every failure is an `error` of one sentence.

    >>> import_named("math:sqrt", GeoquantError)(9.0)
    3.0
    >>> import_named("math:sqrtt", GeoquantError)
    Traceback (most recent call last):
    ...
    geoquant.errors.GeoquantError: 'math' has no 'sqrtt' (did you mean 'sqrt'?)
    """
    if not is_spec(spec):
        raise error(f"'{spec}' names nothing to import; {_FORM}")
    place, _, name = spec.rpartition(":")
    folder = Path(place).resolve().parent if place.endswith(".py") else Path.cwd()
    with _importable(folder):
        found: Any = _file(Path(place).expanduser(), error) if place.endswith(".py") else _module(place, error)
    for part in name.split("."):
        if not hasattr(found, part):
            public = [known for known in getattr(found, "__dict__", {}) if not known.startswith("_")]
            raise error(f"'{place}' has no '{part}'{suggest(part, public)}")
        found = getattr(found, part)
    return found


def _module(name: str, error: type[GeoquantError]) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as missing:
        if missing.name is not None and f"{name}.".startswith(f"{missing.name}."):
            raise error(f"there is no module '{name}' ('{missing.name}' is not found); {_FORM}") from missing
        raise error(f"importing '{name}' failed: {missing}") from missing
    except Exception as failure:
        raise error(f"importing '{name}' failed: {type(failure).__name__}: {failure}") from failure


def _file(path: Path, error: type[GeoquantError]) -> ModuleType:
    """Import a file under a name of its own, so that equal file names in two folders do not meet."""
    if not path.is_file():
        raise error(f"there is no file {path}; {_FORM}")
    name = f"geoquant_file_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    plan = importlib.util.spec_from_file_location(name, path)
    if plan is None or plan.loader is None:
        raise error(f"{path} cannot be imported as a Python module")
    module = importlib.util.module_from_spec(plan)
    sys.modules[name] = module  # dataclasses of the user's look here
    try:
        plan.loader.exec_module(module)
    except Exception as failure:
        del sys.modules[name]
        raise error(f"importing {path} failed: {type(failure).__name__}: {failure}") from failure
    return module


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let imports find modules of `folder` meanwhile, like ``python file.py`` does."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))
