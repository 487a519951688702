"""What may each layer, and each of its inputs, be put on?

A row of the allocation problem is a layer or an operand of an operation; a column is a grid for the weights together
with one for what enters. Where activations are given, or stay in float, columns differ in the weights' grid only. Both
damages add up: they were measured one at a time, and what they do to each other is not seen here. Rows that choose
together, such as fused projections, share both grids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geoquant.arrays import Floats
from geoquant.errors import PlanError, suggest
from geoquant.grids import ActivationGrid, Grid
from geoquant.models import Inventory, fused_groups, select
from geoquant.plan.activations import Entries, ordered
from geoquant.plan.plan import Request
from geoquant.sensitivity import ActivationTable, DamageTable

FLOAT = "fp32"


@dataclass(frozen=True, eq=False)
class Choices:
    """The allocation problem of one model.

    Attributes:
        grids: the weights' grid of each column.
        inputs: the activation grid of each column; None where it is given, or float. All weight grids without one come
            first, then all with the first activation grid, and so on. Operands only use columns of the first weight
            grid.
        rows: names of the layers, then of the operands whose grid is chosen.
        damage: (rows, columns), inf where a choice is not allowed.
        bits: stored bits of each choice, header entries apart.
        groups: rows that must choose alike.
        weights: (rows,) of what width-based strategies weigh rows by: weights of layers, elements of operands.
        widths: (rows, columns) bits per choice: of the weights, or the mean of weights and input.
    """

    grids: tuple[Grid, ...]
    inputs: tuple[str | None, ...]
    rows: tuple[str, ...]
    damage: Floats
    bits: NDArray[np.int64]
    groups: tuple[tuple[int, ...], ...]
    weights: NDArray[np.int64]
    widths: Floats

    @property
    def chooses_inputs(self) -> bool:
        """Whether a column names an activation grid."""
        return self.inputs[-1] is not None

    @property
    def period(self) -> int:
        """Number of weight grids: columns this far apart differ in the activation grid only."""
        return self.inputs.count(None)

    def cheapest(self, cost: NDArray[np.int64]) -> tuple[int, ...]:
        """Return the allowed selection of least `cost` (rows, columns), groups respected."""
        price = np.where(np.isfinite(self.damage), cost, np.iinfo(np.int64).max // (4 * len(cost))).astype(np.int64)
        for group in self.groups:
            price[list(group)] = price[list(group)].sum(0)
        return tuple(price.argmin(1).tolist())

    def least(self, cost: NDArray[np.int64]) -> int:
        """Return the least total of `cost` (rows, columns) over the allowed selections."""
        return int(cost[np.arange(len(cost)), list(self.cheapest(cost))].sum())

    def layers(self, inventory: Inventory, selection: Sequence[int]) -> tuple[Grid, ...]:
        """Return the grid of every layer."""
        return tuple(self.grids[column] for column in selection[: len(inventory.sites)])

    def activations(self, selection: Sequence[int], given: Entries) -> Entries:
        """Return all (activation site, grid) pairs: those chosen, and those `given`."""
        chosen = {row: self.inputs[column] for row, column in zip(self.rows, selection, strict=True)}
        found = {**dict(given), **{name: grid for name, grid in chosen.items() if grid is not None}}
        return given if not self.chooses_inputs else ordered(found, self.rows)

    def columns(self, names: Sequence[str], activations: Entries) -> tuple[int, ...]:
        """Return the selection that gives these grids; the inverse of `layers` and `activations`."""
        grids, entering = [str(grid) for grid in self.grids[: self.period]], dict(activations)
        found = []
        for row, name in enumerate(self.rows):
            column = grids.index(names[row]) if row < len(names) else 0
            if not np.isfinite(self.damage[row, column]) and entering.get(name) in self.inputs:
                column += self.inputs.index(entering[name])
            found.append(column)
        return tuple(found)


def make_choices(
    inventory: Inventory, table: DamageTable, request: Request, inputs: ActivationTable | None = None
) -> Choices:
    """Lay out the damage and storage of every choice that the request allows.

    Raises:
        PlanError: the request asks for what was not measured, or damages of weights and inputs cannot be added.
    """
    names = list(table.grids)
    if FLOAT not in names:
        names.append(FLOAT)
    grids = tuple(Grid.parse(name) for name in names)
    damage = np.full((len(inventory.sites), len(names)), np.inf)
    for row, site in enumerate(inventory.sites):
        if site.name in table.sites:
            damage[row, : len(table.grids)] = table.row(site.name)
        else:
            damage[row, names.index(FLOAT)] = 0.0  # not measured: stays in float
    _apply_constraints(inventory, damage, grids, request)
    bits = np.array([[grid.storage(site.matrix_shape).total_bits for grid in grids] for site in inventory.sites])
    index = {name: row for row, name in enumerate(inventory.names)}
    groups = tuple(
        tuple(index[name] for name in group)
        for group in fused_groups(inventory.names, list(request.fused))
        if len(group) > 1
    )
    weights = np.array([site.weights for site in inventory.sites], np.int64)
    widths = np.broadcast_to([grid.bits for grid in grids], damage.shape)
    none = (None,) * len(grids)
    alone = Choices(grids, none, inventory.names, damage, bits.astype(np.int64), groups, weights, widths)
    if not request.budget.sees_activations:
        return alone
    if inputs is None:
        if request.budget.average_activation_bits is None:
            return alone
        raise PlanError("this evidence holds no damage of activations; profile the model with activations=[...]")
    return _with_inputs(alone, table, request, inputs)


def _with_inputs(alone: Choices, table: DamageTable, request: Request, inputs: ActivationTable) -> Choices:
    """Let every measured activation that is neither given nor to stay in float choose its grid too."""
    given = dict(request.activations)
    free = [name for name in inputs.sites if name not in given and name not in request.in_float]
    if free and table.unit != inputs.damages.unit:
        raise PlanError(
            f"the scores of {table.predictor} cannot be added to the damage of activations, which is in "
            f"{inputs.damages.unit}; choose a predictor in that unit, or give all activation grids"
        )
    menu = inputs.grids if free else ()
    operands = [name for name in inputs.sites if name not in alone.rows]
    rows, period, tiles = (*alone.rows, *operands), len(alone.grids), 1 + len(menu)
    own = np.full((len(rows), period), np.inf)
    own[: len(alone.rows)], own[len(alone.rows) :, 0] = alone.damage, 0.0
    damage = np.full((len(rows), tiles, period), np.inf)
    for row, name in enumerate(rows):
        if name in free:
            damage[row, 1:] = own[row] + np.array(inputs.damages.row(name))[:, None]
        else:
            damage[row, 0] = own[row] + _known(inputs, name, given.get(name))
    bits = np.zeros(damage.shape, np.int64)
    bits[: len(alone.rows)] = alone.bits[:, None]
    widths = np.zeros(damage.shape)
    widths[: len(alone.rows)] = alone.widths[:, None]
    for place, grid in enumerate(menu, 1):
        width = ActivationGrid.parse(grid).bits
        widths[: len(alone.rows), place] = (widths[: len(alone.rows), place] + width) / 2
        widths[len(alone.rows) :, place] = width
    elements = dict(zip(inputs.sites, inputs.elements, strict=True))
    weights = np.concatenate([alone.weights, np.array([elements[name] for name in operands], np.int64)])
    flat = (len(rows), tiles * period)
    names = (None, *menu)
    return Choices(
        alone.grids * tiles,
        tuple(name for name in names for _ in range(period)),
        rows,
        damage.reshape(flat),
        bits.reshape(flat),
        alone.groups,
        weights,
        widths.reshape(flat),
    )


def _known(inputs: ActivationTable, name: str, grid: str | None) -> float:
    """Return the damage of an activation whose grid is given; 0 where that was not measured, or it stays in float."""
    if name not in inputs.sites or grid not in inputs.grids:
        return 0.0
    return inputs.damages.row(name)[inputs.grids.index(grid)]


def _apply_constraints(inventory: Inventory, damage: Floats, grids: tuple[Grid, ...], request: Request) -> None:
    """Set to inf what menu, widths and fixed grids forbid; fixed layers are exempt from the rest."""
    widths = np.array([grid.bits for grid in grids])
    measured = [str(grid) for grid in grids]
    free = np.ones(len(inventory.sites), bool)
    index = {name: row for row, name in enumerate(inventory.names)}
    for pattern, token in request.fixed:
        allowed = _matching(token, grids)
        if not allowed.any():
            raise PlanError(f"{token!r} for '{pattern}' was not measured{suggest(str(token), measured)}; profile it")
        for name in select(inventory.names, [pattern]):
            row = index[name]
            if str(token) == FLOAT:
                damage[row, measured.index(FLOAT)] = 0.0
            damage[row, ~allowed] = np.inf
            free[row] = False
    if request.menu is not None:
        keep = np.logical_or.reduce([_matching(token, grids) for token in request.menu])
        _require(damage, free, keep, f"the menu {list(request.menu)}", measured, inventory)
    for limits, side in ((request.lower, np.less), (request.upper, np.greater)):
        for pattern, width in limits:
            rows = np.zeros(len(free), bool)
            rows[[index[name] for name in select(inventory.names, [pattern])]] = True
            _require(damage, free & rows, ~side(widths, width), f"the width limit {width:g}", measured, inventory)


def _require(
    damage: Floats,
    rows: NDArray[np.bool_],
    keep: NDArray[np.bool_],
    what: str,
    measured: list[str],
    inventory: Inventory,
) -> None:
    """Forbid all but `keep` at `rows`; a measured row that loses its last choice is an error."""
    rows = rows & np.isfinite(damage[:, : len(measured) - 1]).any(1)
    damage[np.ix_(rows, ~keep)] = np.inf
    stuck = rows & ~np.isfinite(damage).any(1)
    if stuck.any():
        name = inventory.names[int(np.argmax(stuck))]
        raise PlanError(f"{what} leaves '{name}' no measured grid (measured: {', '.join(measured)})")


def _matching(token: str | int, grids: tuple[Grid, ...]) -> NDArray[np.bool_]:
    """Say which grids a menu entry means: a width means every integer grid of that width."""
    text = str(token)
    if text.isdigit():
        return np.array([grid.bits == int(text) and str(grid) != FLOAT for grid in grids])
    wanted = str(Grid.parse(text))
    return np.array([str(grid) == wanted for grid in grids])
