"""How long does each layer take at each grid? A table that somebody measured on the hardware that matters.

geoquant does not measure it: which kernels a deployment has is for its engineer to know. Times add up over layers,
which leaves out overlap and caches; what does not depend on the grids goes into `base`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from pathlib import Path

from geoquant import storage
from geoquant.errors import BudgetError, FileFormatError, suggest
from geoquant.grids import Grid

NANOSECONDS = 10**6
"""In a millisecond; times are added up in whole nanoseconds."""


def nanoseconds(milliseconds: float, up: bool) -> int:
    """Return whole nanoseconds, rounded up or down from the number as it is written.

    >>> nanoseconds(0.07, up=True), nanoseconds(0.0000015, up=True), nanoseconds(0.0000015, up=False)
    (70000, 2, 1)
    """
    exact = Decimal(repr(float(milliseconds))) * NANOSECONDS
    return math.ceil(exact) if up else math.floor(exact)


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds of each site at each grid.

    Grids that differ only in how their scales are searched (``int4`` and ``int4:mse-signed``) run alike: what is
    given for one holds for the others, unless they have their own entry.

    Attributes:
        entries: (site, canonical grid, milliseconds), sorted.
        base: milliseconds of everything else.

    >>> table = LatencyTable.of({"conv1": {"int4": 0.2, "int8": 0.3}}, base=1.0)
    >>> table.milliseconds("conv1", "int4:mse-signed")
    0.2
    >>> table.milliseconds("conv1", "int2")
    Traceback (most recent call last):
    ...
    geoquant.errors.BudgetError: the latency table has no time for 'conv1' at int2 (it has int4, int8); ...
    """

    entries: tuple[tuple[str, str, float], ...]
    base: float = 0.0

    def __post_init__(self) -> None:
        times = [("the base", self.base), *((f"'{site}' at {grid}", time) for site, grid, time in self.entries)]
        for what, time in times:
            if not math.isfinite(time) or time < 0:
                raise BudgetError(f"the latency of {what} is {time}; give milliseconds, 0 or more")

    @staticmethod
    def of(times: Mapping[str, Mapping[str, float]], base: float = 0.0) -> LatencyTable:
        """Make a table from ``{site: {grid: milliseconds}}``."""
        entries = {
            (site, str(Grid.parse(grid))): float(time) for site, row in times.items() for grid, time in row.items()
        }
        return LatencyTable(tuple((*key, entries[key]) for key in sorted(entries)), float(base))

    @cached_property
    def _times(self) -> dict[str, dict[str, float]]:
        rows: dict[str, dict[str, float]] = {}
        for site, grid, time in self.entries:
            rows.setdefault(site, {})[grid] = time
        return rows

    def milliseconds(self, site: str, grid: str | Grid) -> float:
        """Return the time of `site` at `grid`.

        Raises:
            BudgetError: the table does not say.
        """
        if site not in self._times:
            raise BudgetError(f"the latency table has no layer '{site}'{suggest(site, self._times)}; measure it")
        row, name = self._times[site], str(grid)
        if name in row:
            return row[name]
        wanted = _kernel(name)
        for other in sorted(row):
            if _kernel(other) == wanted:
                return row[other]
        raise BudgetError(
            f"the latency table has no time for '{site}' at {name} (it has {', '.join(sorted(row))}); measure it, or "
            "forbid the grid with a menu"
        )

    def save(self, path: Path | str) -> Path:
        """Write ``{"milliseconds": {site: {grid: time}}, "base": time}`` as JSON, atomically."""
        document = {"milliseconds": self._times, "base": self.base}
        storage.write_text(path, json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
        return Path(path)

    @staticmethod
    def load(path: Path | str) -> LatencyTable:
        """Read what `save` writes, or a person wrote by hand.

        Raises:
            FileFormatError: it is no such file.
            GridError: a grid's name is unknown.
            BudgetError: a time is negative or not finite.
        """
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise FileFormatError(f"cannot read the latency table {path}: {error.strerror}") from error
        except ValueError as error:
            raise FileFormatError(f"the latency table {path} is not JSON ({error}); mend it") from error
        times = document.get("milliseconds") if isinstance(document, dict) else None
        if not isinstance(times, dict) or not all(_is_row(row) for row in times.values()):
            raise FileFormatError(f'{path} is no latency table; expected {{"milliseconds": {{layer: {{grid: time}}}}}}')
        base = document.get("base", 0.0)
        if not _is_number(base):
            raise FileFormatError(f"{path}: the base is {base!r}; give milliseconds")
        return LatencyTable.of(times, base)


def _is_row(row: object) -> bool:
    return isinstance(row, dict) and all(_is_number(time) for time in row.values())


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _kernel(name: str) -> tuple[str, ...]:
    """Return what decides how fast a grid runs: everything but the search for its scales."""
    grid = Grid.parse(name)
    return (*grid.format.tokens, grid.granularity.token, grid.scale_dtype)
