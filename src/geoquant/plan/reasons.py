"""Why did a layer get its bits? One sentence a site, from the same numbers that the solver saw.

The price of a bit is the most damage that any one more step up would still save per bit; a layer stays
where it is because its own next step buys less than others' do, or costs more than is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoquant.arrays import Floats
from geoquant.grids import ActivationGrid
from geoquant.models import Inventory
from geoquant.plan.choices import Choices


def reasons(choices: Choices, selection: Sequence[int], inventory: Inventory, unit: str | None) -> tuple[str, ...]:
    """Return a sentence for each site: what one step more would save, one step less would cost; then for its input."""
    partner = {row: group for group in choices.groups for row in group}
    period, texts = choices.period, []
    for row, chosen in enumerate(selection[: len(inventory.sites)]):
        rows, column = list(partner.get(row, (row,))), chosen % period
        damage = choices.damage[rows].sum(0).reshape(-1, period)
        alike, entering = damage[chosen // period], damage[:, column]
        said = []
        if np.isfinite(alike).sum() == 1:
            said.append("the only grid that the request allows")
        else:
            bits = choices.bits[rows, :period].sum(0)
            steps = _steps(alike, bits, column, [str(grid) for grid in choices.grids[:period]], unit, stored=True)
            said.append(steps + _fused(row, rows, inventory))
        if np.isfinite(entering).sum() > 1:
            names = [name or "" for name in choices.inputs[::period]]
            widths = np.array([ActivationGrid.parse(name).bits if name else 0 for name in names])
            said.append(
                f"input at {names[chosen // period]}: {_steps(entering, widths, chosen // period, names, unit)}"
            )
        texts.append("; ".join(said))
    return tuple(texts)


def _fused(row: int, rows: list[int], inventory: Inventory) -> str:
    if len(rows) == 1:
        return ""
    return "; shared with " + ", ".join(inventory.names[other] for other in rows if other != row)


def _steps(
    damage: Floats,
    bits: NDArray[Any],
    column: int,
    names: Sequence[str],
    unit: str | None,
    stored: bool = False,
) -> str:
    """Compare a choice with the nearest dearer and the nearest cheaper one; of weights, say the bytes between."""
    measure = "nats" if unit else "score"
    parts = []
    finite = np.isfinite(damage)
    dearer = np.flatnonzero(finite & (bits > bits[column]))
    cheaper = np.flatnonzero(finite & (bits < bits[column]))
    if len(dearer):
        up = dearer[np.argmin(bits[dearer])]
        more = f" for {(bits[up] - bits[column]) / 8:,.0f} B more" if stored else ""
        parts.append(f"{names[up]} would {_change(damage[up] - damage[column])} {measure}{more}")
    if len(cheaper):
        down = cheaper[np.argmax(bits[cheaper])]
        less = f" to save {(bits[column] - bits[down]) / 8:,.0f} B" if stored else ""
        parts.append(f"{names[down]} would {_change(damage[down] - damage[column])} {measure}{less}")
    return "; ".join(parts)


def _change(damage: float) -> str:
    """Say what a rise of the damage is; a measured one may fall below zero by chance.

    >>> _change(2e-8), _change(-0.25)
    ('cost 2e-08', 'save 0.25')
    """
    return f"{'save' if damage < 0 else 'cost'} {abs(damage):.2g}"
