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
from geoquant.grids import ActivationGrid, Grid

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
    given for one holds for the others, unless they have their own entry. Where kernels take quantized inputs, name
    both: ``int4/int8:affine`` is the time of int4 weights with int8 inputs; a layer without such entries runs alike for
    all of its inputs. Operands of operations have their own rows (``layer1.0.add:0``), by activation grid; those that
    have none take no time of their own.

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
    >>> LatencyTable.of({"conv1": {"int4": 0.3, "int4/int8": 0.2}}).milliseconds("conv1", "int4", "int8:minmax")
    0.2
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
            (site, _canonical(site, grid)): float(time) for site, row in times.items() for grid, time in row.items()
        }
        return LatencyTable(tuple((*key, entries[key]) for key in sorted(entries)), float(base))

    @cached_property
    def _times(self) -> dict[str, dict[str, float]]:
        rows: dict[str, dict[str, float]] = {}
        for site, grid, time in self.entries:
            rows.setdefault(site, {})[grid] = time
        return rows

    @property
    def sees_activations(self) -> bool:
        """Whether a time depends on the grid of an activation."""
        return any("/" in grid or ":" in site for site, grid, _ in self.entries)

    def milliseconds(self, site: str, grid: str | Grid, entering: str | None = None) -> float:
        """Return the time of `site` at `grid`, with inputs on the activation grid `entering` (None: float).

        Raises:
            BudgetError: the table does not say.
        """
        if site not in self._times:
            raise BudgetError(f"the latency table has no layer '{site}'{suggest(site, self._times)}; measure it")
        both = entering is not None and any("/" in name for name in self._times[site])
        return self._find(site, f"{grid}/{entering}" if both else str(grid))

    def operand(self, name: str, entering: str | None) -> float:
        """Return the time of an operand at an activation grid; 0 where it has no row, or stays in float.

        Raises:
            BudgetError: it has a row, which does not say.
        """
        return 0.0 if entering is None or name not in self._times else self._find(name, entering)

    def _find(self, site: str, name: str) -> float:
        row = self._times[site]
        if name in row:
            return row[name]
        wanted = _kernel(site, name)
        for other in sorted(row):
            if _kernel(site, other) == wanted:
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


def _canonical(site: str, name: str) -> str:
    """Return the one spelling of ``int4``, ``int4/int8:affine``, or of an operand's activation grid."""
    if ":" in site:
        return str(ActivationGrid.parse(name))
    weights, slash, entering = name.partition("/")
    return str(Grid.parse(weights)) + (f"/{ActivationGrid.parse(entering)}" if slash else "")


def _kernel(site: str, name: str) -> tuple[object, ...]:
    """Return what decides how fast a grid runs: everything but the search for its scales."""
    weights, slash, entering = ("", "/", name) if ":" in site else name.partition("/")
    found: tuple[object, ...] = ()
    if weights:
        grid = Grid.parse(weights)
        found = (*grid.format.tokens, grid.granularity.token, grid.scale_dtype)
    if slash:
        grid_in = ActivationGrid.parse(entering)
        found = (*found, "/", *grid_in.format.tokens, grid_in.per_token, grid_in.dynamic)
    return found
