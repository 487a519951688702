"""Reading finished cells: those with some configuration, the mean of a figure and its spread over seeds.

Only what was finished is here; a mean over cells says over how many.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

from geoquant.errors import StudyError
from geoquant.findings import Series


@dataclass(frozen=True)
class Result:
    """One finished cell.

    Attributes:
        configuration: of the cell.
        metrics: what it measured; numbers that are not finite became None.
        rows: the table that it brought along.
        seconds: that it took.
    """

    configuration: Mapping[str, Any]
    metrics: Mapping[str, Any]
    rows: tuple[Mapping[str, Any], ...] = ()
    seconds: float = 0.0

    def __getitem__(self, name: str) -> Any:
        """Return a metric, or a part of the configuration."""
        return self.metrics[name] if name in self.metrics else self.configuration[name]


@dataclass(frozen=True)
class Summary:
    """The mean of a metric over `count` cells, with their standard deviation (None for a single cell).

    >>> str(Summary(1.5, 0.25, 3)), str(Summary(2.0, None, 1))
    ('1.5 ± 0.25 (3)', '2 (1)')
    """

    mean: float
    deviation: float | None
    count: int

    def __str__(self) -> str:
        spread = "" if self.deviation is None else f" ± {self.deviation:.2g}"
        return f"{self.mean:.4g}{spread} ({self.count})"


@dataclass(frozen=True)
class Results(Sequence[Result]):
    """Finished cells of one study, in the order of its grid.

    Attributes:
        command: makes them again.
        preset: whose cells they are.
        missing: how many of the preset's cells are not among them.

    >>> cells = Results(tuple(Result({"net": "a", "seed": s}, {"error": float(s)}) for s in (0, 1, 2)))
    >>> cells.where(seed=(1, 2)).summary("error")
    Summary(mean=1.5, deviation=0.7071067811865476, count=2)
    >>> cells.where(net="b").summary("error") is None
    True
    """

    cells: tuple[Result, ...]
    command: str = ""
    preset: str = ""
    missing: int = 0

    @overload
    def __getitem__(self, index: int) -> Result: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Result, ...]: ...

    def __getitem__(self, index: int | slice) -> Result | tuple[Result, ...]:
        return self.cells[index]

    def __len__(self) -> int:
        return len(self.cells)

    def where(self, **configuration: Any) -> Results:
        """Keep the cells with these values; a tuple or a set means any of its members, None also an absent name."""

        def matches(cell: Result) -> bool:
            return all(
                cell.configuration.get(name) in value
                if isinstance(value, (tuple, set, frozenset))
                else cell.configuration.get(name) == value
                for name, value in configuration.items()
            )

        return self.keep(matches)

    def keep(self, matches: Callable[[Result], bool]) -> Results:
        """Keep the cells that `matches` says."""
        return replace(self, cells=tuple(cell for cell in self.cells if matches(cell)))

    def values(self, name: str) -> tuple[Any, ...]:
        """Return the distinct values of a part of the configuration, in the order of the cells."""
        return tuple(dict.fromkeys(cell.configuration[name] for cell in self.cells if name in cell.configuration))

    def by(self, *names: str) -> Iterator[tuple[tuple[Any, ...], Results]]:
        """Yield the values of these parts of the configuration, and the cells that share them."""
        groups: dict[tuple[Any, ...], list[Result]] = {}
        for cell in self.cells:
            groups.setdefault(tuple(cell.configuration.get(name) for name in names), []).append(cell)
        for key, members in groups.items():
            yield key, replace(self, cells=tuple(members))

    def summary(self, metric: str) -> Summary | None:
        """Return the mean of a metric over the cells that have it, or None where no cell has."""
        return summary([cell.metrics[metric] for cell in self.cells if cell.metrics.get(metric) is not None])

    def series(self, name: str, x: str, metric: str) -> Series:
        """Return the mean of a metric with its spread, against a part of the configuration."""
        found = [(key[0], cells.summary(metric)) for key, cells in self.by(x)]
        known = [(at, one) for at, one in found if one is not None]
        return Series(
            name,
            tuple(at for at, _ in known),
            tuple(one.mean for _, one in known),
            tuple(one.deviation for _, one in known),
            tuple(str(one) for _, one in known),
        )


def summary(values: Sequence[float]) -> Summary | None:
    """Return mean, standard deviation and count; None of nothing.

    Raises:
        StudyError: a value is no number.

    >>> summary([1.0, 3.0]).mean
    2.0
    """
    if not values:
        return None
    if not all(isinstance(value, (int, float)) for value in values):
        raise StudyError(f"a mean needs numbers; got {values[:3]}")
    spread = statistics.stdev(values) if len(values) > 1 else None
    return Summary(statistics.fmean(values), spread, len(values))
