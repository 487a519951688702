"""What does each choice take from each budget, in whole numbers?

Average bits (of weights and of activations), bit-operations and latency are sums over sites, so that keeping them is
one linear limit each. The size of the file is not quite (see `geoquant.plan.solving`). Units are chosen so that every
cost is an exact integer, except nanoseconds: times are rounded up and their limit down, so that a plan within them is
within the milliseconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from geoquant.allocation import Cost
from geoquant.errors import BudgetError, PlanError
from geoquant.grids import ActivationGrid, Grid
from geoquant.models import Inventory
from geoquant.plan.activations import Entries
from geoquant.plan.choices import Choices
from geoquant.plan.latency import NANOSECONDS, LatencyTable, nanoseconds
from geoquant.plan.plan import Request
from geoquant.sensitivity import ActivationTable


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
    inventory: Inventory,
    choices: Choices,
    request: Request,
    macs: tuple[int, ...],
    inputs: ActivationTable | None = None,
) -> tuple[Limit, ...]:
    """Return the linear limits of the request's budget; bytes are passed over.

    Args:
        inventory: the model's sites.
        choices: what is allowed.
        request: the budget, and which activation grids are given.
        macs: multiplications of each site for one sample; needed for bit-operations only.
        inputs: how much enters each activation site; needed for average activation bits only.

    Raises:
        BudgetError: the smallest possible plan exceeds one of the limits, or a latency is missing.
        PlanError: multiplications were not counted.
    """
    budget, limits = request.budget, []
    if budget.average_bits is not None:
        most = math.floor(budget.average_bits * inventory.weights + 1e-6)
        limits.append(Limit(Cost("bits", choices.bits, most), 1 / inventory.weights, "average bits"))
        _check(choices, limits[-1], budget.average_bits)
    if budget.average_activation_bits is not None:
        assert inputs is not None  # choices are made with it
        limits.append(_activation_limit(choices, request, budget.average_activation_bits, inputs))
        _check(choices, limits[-1], budget.average_activation_bits)
    if budget.bit_operations is not None:
        unit, table = _operations(inventory, choices, request, macs)
        most = math.floor(Fraction(str(budget.bit_operations)) / unit)
        limits.append(Limit(Cost("bit-operations", table, most), float(unit), "bit-operations"))
        _check(choices, limits[-1], budget.bit_operations)
    if budget.latency is not None:
        assert budget.latency_table is not None
        base = budget.latency_table.base
        most = nanoseconds(budget.latency, up=False) - nanoseconds(base, up=True)
        times = _times(inventory, choices, budget.latency_table, request.activations)
        limits.append(Limit(Cost("nanoseconds", times, most), 1 / NANOSECONDS, "ms", base))
        _check(choices, limits[-1], budget.latency)
    return tuple(limits)


def _entering(choices: Choices, request: Request) -> tuple[int, NDArray[np.int64]]:
    """Return the bits of what enters, (rows, columns), as whole numbers of one part in so many."""
    given, float_bits = dict(request.activations), request.budget.activation_bits
    held = [ActivationGrid.parse(given[name]).bits if name in given else float_bits for name in choices.rows]
    chosen = [None if name is None else _exact(ActivationGrid.parse(name).bits) for name in choices.inputs]
    exact = [[_exact(own) if bits is None else bits for bits in chosen] for own in held]
    finest = math.lcm(*(bits.denominator for row in exact for bits in row))
    return finest, np.array([[int(bits * finest) for bits in row] for row in exact], np.int64)


def _exact(bits: float) -> Fraction:
    """Numbers count as they are written."""
    return Fraction(str(bits))


def _activation_limit(choices: Choices, request: Request, asked: float, inputs: ActivationTable) -> Limit:
    """Limit the average bits of the measured activations, each weighted by how many numbers enter there."""
    parts, bits = _entering(choices, request)
    elements = dict(zip(inputs.sites, inputs.elements, strict=True))
    counts = np.array([elements.get(name, 0) for name in choices.rows], np.int64)
    total = parts * int(counts.sum())
    most = math.floor(_exact(asked) * total)
    return Limit(Cost("activation bits", counts[:, None] * bits, most), 1 / total, "average activation bits")


def _operations(
    inventory: Inventory, choices: Choices, request: Request, macs: tuple[int, ...]
) -> tuple[Fraction, NDArray[np.int64]]:
    """Return multiplications × weight bits × activation bits as a unit and whole numbers (rows, columns) of it.

    Operands of operations multiply no weight, and count nothing.
    """
    if not macs:
        raise PlanError("this profile does not say how much each layer multiplies; profile the model again")
    unit, table = operations(macs, choices.grids)
    parts, bits = _entering(choices, request)
    total = np.zeros(choices.damage.shape, np.int64)
    total[: len(inventory.sites)] = table * bits[: len(inventory.sites)]
    common = max(int(np.gcd.reduce(total, axis=None)), 1)
    return unit * common / parts, total // common


def operations(macs: tuple[int, ...], grids: tuple[Grid, ...]) -> tuple[Fraction, NDArray[np.int64]]:
    """Return multiplications × weight bits as a unit and whole numbers (sites, grids) of it.

    >>> unit, table = operations((600, 200), (Grid.parse("int4"), Grid.parse("ternary")))
    >>> unit, table.tolist()
    (Fraction(40, 1), [[60, 24], [20, 8]])
    """
    bits = [Fraction(grid.bits).limit_denominator(1000) for grid in grids]
    scale = math.lcm(*(width.denominator for width in bits))
    common = max(math.gcd(*macs), 1)
    widths = np.array([int(width * scale) for width in bits], np.int64)
    return Fraction(common, scale), np.array([count // common for count in macs], np.int64)[:, None] * widths


def _times(inventory: Inventory, choices: Choices, table: LatencyTable, given: Entries) -> NDArray[np.int64]:
    """Return the nanoseconds of every allowed choice (rows, columns); 0 for the others."""
    times, held = np.zeros(choices.damage.shape, np.int64), dict(given)
    for row, column in zip(*np.nonzero(np.isfinite(choices.damage)), strict=True):
        name = choices.rows[row]
        entering = choices.inputs[column] or held.get(name)
        if row < len(inventory.sites):
            milliseconds = table.milliseconds(name, choices.grids[column], entering)
        else:
            milliseconds = table.operand(name, entering)
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
