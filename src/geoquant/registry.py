"""Named things that third parties may add: predictors, solvers, roundings, exporters.

A registry maps a name to one object. Packages add theirs through an entry point group
``geoquant.<kind>`` (spaces as underscores) or by calling `Registry.register`; entry points load when a name is
first asked for,
so importing geoquant stays cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from geoquant.errors import UnknownNameError, suggest

T = TypeVar("T")


class Registry(Generic[T]):
    """A table of named objects of one kind.

    >>> shapes: Registry[int] = Registry("shape")
    >>> shapes.register("triangle", 3)
    >>> shapes["triangle"]
    3
    >>> shapes["triangel"]
    Traceback (most recent call last):
    ...
    geoquant.errors.UnknownNameError: there is no shape named 'triangel' (did you mean 'triangle'?)
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}
        self._entry_points_loaded = False

    def register(self, name: str, item: T) -> None:
        """Add `item` under `name`; a second item of the same name is an error, not a replacement."""
        if name in self._items and self._items[name] is not item:
            raise UnknownNameError(f"a {self.kind} named '{name}' exists already; choose another name")
        self._items[name] = item

    def add(self, name: str) -> Callable[[T], T]:
        """Decorate a class or function to register it under `name`."""

        def keep(item: T) -> T:
            self.register(name, item)
            return item

        return keep

    def names(self) -> list[str]:
        """Every registered name, those of entry points included, sorted."""
        self._load_entry_points()
        return sorted(self._items)

    def __getitem__(self, name: str) -> T:
        if name not in self._items:
            self._load_entry_points()
        if name not in self._items:
            raise UnknownNameError(f"there is no {self.kind} named '{name}'{suggest(name, self._items)}")
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def _load_entry_points(self) -> None:
        if self._entry_points_loaded:
            return
        self._entry_points_loaded = True
        for point in entry_points(group=f"geoquant.{self.kind.replace(' ', '_')}"):
            self.register(point.name, point.load())
