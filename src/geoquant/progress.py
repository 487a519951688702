"""Long work says how far it is, to whoever listens.

Library code wraps its loops in `task`; nothing is shown unless a caller (the command line) opened
`shown`. So the library never prints, and a bar costs one context variable when nobody looks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_bars: ContextVar[Progress | None] = ContextVar("geoquant_progress", default=None)


@contextmanager
def shown(console: Console | None = None) -> Iterator[None]:
    """Show every `task` opened inside as a bar with time left, on standard error."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console or Console(stderr=True), transient=True) as bars:
        token = _bars.set(bars)
        try:
            yield
        finally:
            _bars.reset(token)


@contextmanager
def task(description: str, total: int) -> Iterator[Callable[[], None]]:
    """Announce `total` steps of work; call the yielded function after each.

    >>> with task("counting", 3) as advance:
    ...     for _ in range(3):
    ...         advance()
    """
    bars = _bars.get()
    if bars is None:
        yield lambda: None
        return
    handle = bars.add_task(description, total=total)
    try:
        yield lambda: bars.advance(handle)
    finally:
        bars.remove_task(handle)
