"""What does each choice take from each budget, in whole numbers?

Average bits, bit-operations and latency are sums over sites, so that keeping them is one linear limit each. The size of
the file is not quite (see `geoquant.plan.solving`). Units are chosen so that every cost is an exact integer, except
nanoseconds: times are rounded up and their limit down, so that a plan within them is within the milliseconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from geoquant.allocation import Cost
from geoquant.errors import BudgetError, PlanError
from geoquant.grids import Grid
from geoquant.models import Inventory
from geoquant.plan.activations import Entries, activation_widths
from geoquant.plan.budget import Budget
from geoquant.plan.latency import NANOSECONDS, LatencyTable, nanoseconds


@dataclass(frozen=True, eq=False)
class Choices:
    """The allocation problem of one model: sites × grids.

    Attributes:
        grids: the columns.
        damage: (sites, grids), inf where a choice is not allowed.
        bits: stored bits of each choice, header entries apart.
        groups: rows that must choose alike.
    """

    grids: tuple[Grid, ...]
    damage: NDArray[np.float64]
    bits: NDArray[np.int64]
    groups: tuple[tuple[int, ...], ...]

    def cheapest(self, cost: NDArray[np.int64]) -> tuple[int, ...]:
        """Return the allowed selection of least `cost` (sites, grids), groups respected."""
        price = np.where(np.isfinite(self.damage), cost, np.iinfo(np.int64).max // (4 * len(cost))).astype(np.int64)
        for group in self.groups:
            price[list(group)] = price[list(group)].sum(0)
        return tuple(price.argmin(1).tolist())

    def least(self, cost: NDArray[np.int64]) -> int:
        """Return the least total of `cost` (sites, grids) over the allowed selections."""
        return int(cost[np.arange(len(cost)), list(self.cheapest(cost))].sum())


@dataclass(frozen=True, eq=False)
class Limit:
    """One linear budget, and how its whole numbers read in the caller's unit: ``base + cost × unit``."""

    cost: Cost
    unit: float
    name: str
    base: float = 0.0

    def amount(self, cost: float) -> float:
        """Return `cost` in the caller's unit."""
        return self.base + cost * self.unit


def linear_limits(
    inventory: Inventory, choices: Choices, budget: Budget, macs: tuple[int, ...], activations: Entries = ()
) -> tuple[Limit, ...]:
    """Return the linear limits of `budget`.

    Args:
        inventory: the model's sites.
        choices: what is allowed.
        budget: the limits; bytes are passed over.
        macs: multiplications of each site for one sample; needed for bit-operations only.
        activations: grids of inputs, which bit-operations count with their own bits.

    Raises:
        BudgetError: the smallest possible plan exceeds one of the limits, or a latency is missing.
        PlanError: multiplications were not counted.
    """
    limits = []
    if budget.average_bits is not None:
        most = math.floor(budget.average_bits * inventory.weights + 1e-6)
        limits.append(Limit(Cost("bits", choices.bits, most), 1 / inventory.weights, "average bits"))
        _check(choices, limits[-1], budget.average_bits)
    if budget.bit_operations is not None:
        widths = activation_widths(inventory, activations, budget.activation_bits)
        exact = [Fraction(str(width)) for width in widths]  # numbers count as they are written
        finest = math.lcm(*(width.denominator for width in exact))
        counts = tuple(int(count * width * finest) for count, width in zip(macs, exact, strict=bool(macs)))
        unit, table = operations(counts, choices.grids)
        unit /= finest
        most = math.floor(Fraction(str(budget.bit_operations)) / unit)
        limits.append(Limit(Cost("bit-operations", table, most), float(unit), "bit-operations"))
        _check(choices, limits[-1], budget.bit_operations)
    if budget.latency is not None:
        assert budget.latency_table is not None
        base = budget.latency_table.base
        most = nanoseconds(budget.latency, up=False) - nanoseconds(base, up=True)
        times = _times(inventory, choices, budget.latency_table)
        limits.append(Limit(Cost("nanoseconds", times, most), 1 / NANOSECONDS, "ms", base))
        _check(choices, limits[-1], budget.latency)
    return tuple(limits)


def operations(macs: tuple[int, ...], grids: tuple[Grid, ...]) -> tuple[Fraction, NDArray[np.int64]]:
    """Return multiplications × weight bits as a unit and whole numbers (sites, grids) of it.

    >>> unit, table = operations((600, 200), (Grid.parse("int4"), Grid.parse("ternary")))
    >>> unit, table.tolist()
    (Fraction(40, 1), [[60, 24], [20, 8]])
    """
    if not macs:
        raise PlanError("this profile does not say how much each layer multiplies; profile the model again")
    bits = [Fraction(grid.bits).limit_denominator(1000) for grid in grids]
    scale = math.lcm(*(width.denominator for width in bits))
    common = max(math.gcd(*macs), 1)
    widths = np.array([int(width * scale) for width in bits], np.int64)
    return Fraction(common, scale), np.array([count // common for count in macs], np.int64)[:, None] * widths


def _times(inventory: Inventory, choices: Choices, table: LatencyTable) -> NDArray[np.int64]:
    """Return the nanoseconds of every allowed choice (sites, grids); 0 for the others."""
    times = np.zeros(choices.damage.shape, np.int64)
    for row, column in zip(*np.nonzero(np.isfinite(choices.damage)), strict=True):
        milliseconds = table.milliseconds(inventory.names[row], choices.grids[column])
        times[row, column] = nanoseconds(milliseconds, up=True)
    return times


def _check(choices: Choices, limit: Limit, asked: float) -> None:
    """Say what the smallest plan takes, in the unit that the caller used, where that is above the limit."""
    smallest = choices.least(limit.cost.table)
    if smallest > limit.cost.limit:
        exact = limit.amount(smallest)
        digits = 4 if exact < 1e6 else 0
        least = math.ceil(exact * 10**digits * (1 - 1e-12)) / 10**digits
        raise BudgetError(
            f"a budget of {asked:.10g} {limit.name} is below the smallest possible plan, which takes "
            f"{least:.10g} {limit.name}; raise the budget or allow narrower grids"
        )
