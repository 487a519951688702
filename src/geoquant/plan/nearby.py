"""What is the best plan near this one, when damages are believed to be other than the plan's table says?

Refinement measures real damage and changes its mind about the table. It then asks, within the request that the plan
was made for, for the best plan that changes at most so many layers; and in the end for the evidence of what it chose.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from geoquant.allocation import Cost
from geoquant.arrays import Floats
from geoquant.errors import BudgetError, PlanError
from geoquant.plan.choices import Choices, make_choices
from geoquant.plan.limits import linear_limits
from geoquant.plan.plan import Evidence, Optimality, Plan, Request
from geoquant.plan.solving import Source, plan_of, solve_choices
from geoquant.sensitivity import ActivationTable, DamageTable


@dataclass(frozen=True, eq=False)
class Neighbourhood:
    """The choices and the request of a solved plan.

    Attributes:
        plan: any plan of the model with evidence; its request is kept by all others.
    """

    plan: Plan

    @cached_property
    def evidence(self) -> Evidence:
        """The evidence of the plan."""
        if self.plan.evidence is None:
            raise PlanError("this plan was written by hand and holds no damage table; profile the model and allocate")
        return self.plan.evidence

    @cached_property
    def request(self) -> Request:
        """What was asked, for the sum of damages and the exact solver."""
        return replace(self.evidence.request, solver="milp", objective="sum")

    @cached_property
    def choices(self) -> Choices:
        """What the request allows, with the damages of the plan's tables."""
        return make_choices(self.plan.inventory, self.evidence.table, self.request, self.evidence.inputs)

    @cached_property
    def columns(self) -> tuple[int, ...]:
        """The choices of the plan."""
        return self.choices.columns(self.plan.names, self.plan.activations)

    @cached_property
    def _limits(self) -> tuple[Cost, ...]:
        evidence = self.evidence
        found = linear_limits(self.plan.inventory, self.choices, self.request, evidence.macs, evidence.inputs)
        return tuple(limit.cost for limit in found)

    def best(
        self, damage: Floats, centre: tuple[int, ...] | None = None, changes: int | None = None
    ) -> tuple[tuple[int, ...], Optimality] | None:
        """Return the best selection under other damages, and how good it is; None when nothing fits.

        Args:
            damage: (sites, grids) in the order of `choices`; choices that the request forbids stay forbidden.
            centre: a selection not to go far from.
            changes: at most so many sites, or fused groups, may leave it.
        """
        believed = replace(self.choices, damage=np.where(np.isfinite(self.choices.damage), damage, np.inf))
        costs = self._limits
        if centre is not None and changes is not None:
            costs = (*costs, Cost("changes", self._moves(centre), changes))
        try:
            return solve_choices(self.plan.inventory, believed, self.request, "sum", costs)
        except BudgetError:
            return None

    def _moves(self, centre: tuple[int, ...]) -> NDArray[np.int64]:
        """Count a change of a group once, at its first site."""
        moves = np.ones(self.choices.damage.shape, np.int64)
        moves[np.arange(len(centre)), list(centre)] = 0
        for group in self.choices.groups:
            moves[list(group[1:])] = 0
        return moves

    def bare(self, columns: tuple[int, ...]) -> Plan:
        """Return the plan of a selection, without evidence."""
        names = tuple(str(grid) for grid in self.choices.layers(self.plan.inventory, columns))
        activations = self.choices.activations(columns, self.request.activations)
        return replace(self.plan, names=names, activations=activations, evidence=None)

    def weighed(self, columns: tuple[int, ...], damage: Floats, predictor: str) -> Plan:
        """Return the plan of a selection; its evidence are tables of other damages, in nats, and a bound for those.

        Believed damages are those of pairs (weight grid, activation grid). The tables hold how they change with one of
        the two while the other is the plan's; their sum is the believed one at the plan.
        """
        inventory = self.plan.inventory
        table, inputs = self._corrected(columns, damage, predictor)
        source = Source(table, self.evidence.data, self.evidence.seed, self.evidence.macs, inputs)
        choices = make_choices(inventory, table, self.request, inputs)
        found = solve_choices(inventory, choices, self.request, "sum", self._limits)[1]
        value = float(choices.damage[np.arange(len(columns)), list(columns)].sum())
        bound = min(found.lower_bound, value)
        optimality = Optimality(value, bound, (value - bound) / max(abs(value), 1e-300))
        return plan_of(inventory, source, self.request, choices, columns, optimality)

    def _corrected(
        self, columns: tuple[int, ...], damage: Floats, predictor: str
    ) -> tuple[DamageTable, ActivationTable | None]:
        """Return the plan's tables with the believed damages in them."""
        old, inputs, period = self.evidence.table, self.evidence.inputs, self.choices.period
        index = {name: row for row, name in enumerate(self.choices.rows)}
        weights = {name: np.array(old.row(name)) for name in old.sites}
        entering = {} if inputs is None else {name: np.array(inputs.damages.row(name)) for name in inputs.sites}
        for name, row in index.items():
            pairs = damage[row].reshape(-1, period)
            place, column = divmod(columns[row], period)
            chosen, share = pairs[1:, column], 0.0
            if name in entering and place:
                assert inputs is not None
                share = float(entering[name][place - 1])
                entering[name] = _where_finite(chosen - pairs[place, column] + share, entering[name])
            if name in weights:
                weights[name] = _where_finite(pairs[place, : len(old.grids)] - share, weights[name])
        table = replace(old, predictor=predictor, unit="nats per prediction", damage=_rows(weights))
        if inputs is None:
            return table, None
        return table, replace(inputs, damages=replace(inputs.damages, damage=_rows(entering)))


def _where_finite(found: Floats, otherwise: Floats) -> Floats:
    return np.where(np.isfinite(found), found, otherwise)


def _rows(table: dict[str, Floats]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row.tolist()) for row in table.values())
