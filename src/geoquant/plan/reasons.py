"""Why did a layer get its bits? One sentence a site, from the same numbers that the solver saw.

The price of a bit is the most damage that any one more step up would still save per bit; a layer stays
where it is because its own next step buys less than others' do, or costs more than is left.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from geoquant.grids import Grid
from geoquant.models import Inventory


def reasons(
    damage: NDArray[np.float64],
    bits: NDArray[np.int64],
    groups: tuple[tuple[int, ...], ...],
    selection: tuple[int, ...],
    grids: tuple[Grid, ...],
    inventory: Inventory,
    unit: str | None,
) -> tuple[str, ...]:
    """Return a sentence for each site: what one step more would save, one step less would cost."""
    partner = {row: group for group in groups for row in group}
    texts = []
    for row, column in enumerate(selection):
        allowed = np.flatnonzero(np.isfinite(damage[row]))
        if len(allowed) == 1:
            texts.append("the only grid that the request allows")
            continue
        rows = list(partner.get(row, (row,)))
        texts.append(_steps(damage[rows].sum(0), bits[rows].sum(0), column, grids, unit) + _fused(row, rows, inventory))
    return tuple(texts)


def _fused(row: int, rows: list[int], inventory: Inventory) -> str:
    if len(rows) == 1:
        return ""
    return "; shared with " + ", ".join(inventory.names[other] for other in rows if other != row)


def _steps(
    damage: NDArray[np.float64], bits: NDArray[np.int64], column: int, grids: tuple[Grid, ...], unit: str | None
) -> str:
    """Compare a choice with the nearest dearer and the nearest cheaper one."""
    measure = "nats" if unit else "score"
    parts = []
    finite = np.isfinite(damage)
    dearer = np.flatnonzero(finite & (bits > bits[column]))
    cheaper = np.flatnonzero(finite & (bits < bits[column]))
    if len(dearer):
        up = dearer[np.argmin(bits[dearer])]
        size = (bits[up] - bits[column]) / 8
        parts.append(f"{grids[up]} would save {damage[column] - damage[up]:.2g} {measure} for {size:,.0f} B more")
    if len(cheaper):
        down = cheaper[np.argmax(bits[cheaper])]
        size = (bits[column] - bits[down]) / 8
        parts.append(f"{grids[down]} would cost {damage[down] - damage[column]:.2g} {measure} to save {size:,.0f} B")
    return "; ".join(parts)
