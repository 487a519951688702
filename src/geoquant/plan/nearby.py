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
from geoquant.errors import BudgetError, PlanError
from geoquant.grids import Grid
from geoquant.plan.limits import Choices, linear_limits
from geoquant.plan.plan import Evidence, Optimality, Plan, Request
from geoquant.plan.reasons import reasons
from geoquant.plan.solving import make_choices, solve_choices
from geoquant.sensitivity import DamageTable


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
        """What the request allows, with the damages of the plan's table."""
        return make_choices(self.plan.inventory, self.evidence.table, self.request)

    @cached_property
    def columns(self) -> tuple[int, ...]:
        """The choices of the plan."""
        return tuple(self.choices.grids.index(grid) for grid in self.plan.grids)

    @cached_property
    def _limits(self) -> tuple[Cost, ...]:
        found = linear_limits(
            self.plan.inventory, self.choices, self.request.budget, self.evidence.macs, self.request.activations
        )
        return tuple(limit.cost for limit in found)

    def best(
        self, damage: NDArray[np.float64], centre: tuple[int, ...] | None = None, changes: int | None = None
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

    def grids(self, columns: tuple[int, ...]) -> tuple[Grid, ...]:
        """Return the grid of each site."""
        return tuple(self.choices.grids[column] for column in columns)

    def bare(self, columns: tuple[int, ...]) -> Plan:
        """Return the plan of a selection, without evidence."""
        return replace(self.plan, names=tuple(str(grid) for grid in self.grids(columns)), evidence=None)

    def weighed(self, columns: tuple[int, ...], damage: NDArray[np.float64], predictor: str) -> Plan:
        """Return the plan of a selection; its evidence is a table of other damages, in nats, and a bound for that."""
        old = self.evidence.table
        index = {name: row for row, name in enumerate(self.plan.inventory.names)}
        rows = [damage[index[name], : len(old.grids)] for name in old.sites]
        finite = [np.where(np.isfinite(row), row, own) for row, own in zip(rows, old.damage, strict=True)]
        table = DamageTable(
            predictor,
            "nats per prediction",
            old.sites,
            old.grids,
            tuple(tuple(row.tolist()) for row in finite),
            old.stderr,
            old.cost,
            old.samples,
        )
        choices = make_choices(self.plan.inventory, table, self.request)
        found = solve_choices(self.plan.inventory, choices, self.request, "sum", self._limits)[1]
        value = float(choices.damage[np.arange(len(columns)), list(columns)].sum())
        bound = min(found.lower_bound, value)
        optimality = Optimality(value, bound, (value - bound) / max(abs(value), 1e-300))
        inventory = self.plan.inventory
        why = reasons(choices.damage, choices.bits, choices.groups, columns, choices.grids, inventory, table.unit)
        evidence = replace(self.evidence, table=table, request=self.request, optimality=optimality, reasons=why)
        return replace(self.bare(columns), evidence=evidence)
