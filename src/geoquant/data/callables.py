"""How does ``package.module:callable`` or ``file.py:callable`` on a command line become a function?

Importing runs the user's code, with this process's rights, like ``python file.py`` does.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from geoquant.errors import DataError, suggest


def is_callable_spec(spec: str) -> bool:
    """Say whether `spec` names a callable: something, a colon, and a dotted name.

    >>> is_callable_spec("my_data.py:batches"), is_callable_spec("cifar10"), is_callable_spec("C:/data")
    (True, False, False)
    """
    place, colon, name = spec.rpartition(":")
    return bool(colon and place) and all(part.isidentifier() for part in name.split("."))


def import_callable(spec: str) -> Callable[..., Any]:
    """Import what ``package.module:callable`` or ``file.py:callable`` names.

    Raises:
        DataError: there is no such module, file or name, or it cannot be called.

    >>> import_callable("math:sqrt")(9.0)
    3.0
    >>> import_callable("math:sqrtt")
    Traceback (most recent call last):
    ...
    geoquant.errors.DataError: math has no 'sqrtt' (did you mean 'sqrt'?)
    """
    place, _, name = spec.rpartition(":")
    found: Any = _import_file(Path(place).expanduser()) if place.endswith(".py") else _import_module(place)
    for part in name.split("."):
        if not hasattr(found, part):
            raise DataError(f"{place} has no '{name}'{suggest(part, _public(found))}")
        found = getattr(found, part)
    if not callable(found):
        raise DataError(f"{spec} is {type(found).__name__}; expected a callable that returns batches")
    result: Callable[..., Any] = found
    return result


def _public(owner: Any) -> list[str]:
    return [name for name in dir(owner) if not name.startswith("_")]


def _import_module(name: str) -> ModuleType:
    with _importable(Path.cwd()):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module is there; what it imports is not
            raise DataError(
                f"there is no module {name}; expected package.module:callable or file.py:callable"
            ) from error


def _import_file(file: Path) -> ModuleType:
    if not file.is_file():
        raise DataError(f"there is no file {file}; expected file.py:callable")
    name = f"{file.stem}_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:8]}"
    plan = importlib.util.spec_from_file_location(name, file)
    if plan is None or plan.loader is None:
        raise DataError(f"{file} cannot be imported; expected a Python file")
    module = importlib.util.module_from_spec(plan)
    with _importable(file.parent.resolve()):
        sys.modules[name] = module  # dataclasses and pickling of the user's classes look here
        try:
            plan.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
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
