"""What is the cheapest plan whose predicted damage stays within a tolerance?

The problem of "Curvature-Guided Bit Allocation" (docs/sources.md) on measured tables: bit-operations, stored bits or
time are made small, and the damage is limited. With the predictor ``caq`` the damage is the source's composed error
(relative to that of the worst single choice); with one in nats the tolerance is one that a person can read. Whether
the damages add up to what the model really suffers is for the predictor to answer; `geoquant.search.allocate_within`
measures it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from geoquant.allocation import Cheapest, cheapest_within
from geoquant.errors import PlanError
from geoquant.plan.activations import Activations
from geoquant.plan.budget import Budget
from geoquant.plan.choices import Choices, make_choices
from geoquant.plan.latency import LatencyTable
from geoquant.plan.limits import linear_limits
from geoquant.plan.plan import Evidence, Optimality, Plan
from geoquant.plan.solving import Source, make_request, solve, with_activations
from geoquant.sensitivity import Profile

Unit = Literal["average_bits", "bit_operations", "latency"]
NO_LIMIT = 1e12


@dataclass(frozen=True)
class CheapestPlan:
    """A plan within the tolerance.

    Attributes:
        plan: its evidence holds what it costs as the budget.
        cost: average bits, bit-operations or milliseconds.
        lower_bound: no plan within the tolerance costs less (proven, for this table).
        damage: sum of the damages of weights and chosen activations, at most the tolerance.
        unit: what was made small.
    """

    plan: Plan
    cost: float
    lower_bound: float
    damage: float
    unit: Unit


def allocate_cheapest(
    profile: Profile,
    damage: float,
    *,
    minimise: Unit = "bit_operations",
    predictor: str | None = None,
    method: Literal["exact", "gradient"] = "exact",
    latency_table: LatencyTable | None = None,
    activation_bits: float = 32,
    menu: Sequence[str | int] | None = None,
    lower: float | Mapping[str, float] | None = None,
    upper: float | Mapping[str, float] | None = None,
    fixed: Mapping[str, str | int] | None = None,
    fused: Sequence[str | Sequence[str]] = (),
    activations: Activations | None = None,
) -> CheapestPlan:
    """Make a cost as small as the tolerance allows; of equally cheap plans "exact" takes the least harmful.

    Args:
        profile: the evidence.
        damage: tolerance of the sum of damages, in the unit of the predictor's table; negative damages count as 0.
        minimise: "bit_operations", "average_bits" or "latency".
        predictor: which of the profile's tables to use; its first one when None.
        method: "exact", or "gradient" (projected gradient on fractional widths, rounded up).
        latency_table: times, to minimise latency.
        activation_bits: what an activation in float counts in bit-operations.
        menu: allow only these widths or grids, as for `allocate`.
        lower: least widths, likewise.
        upper: largest widths.
        fixed: grids or widths that layers must take.
        fused: groups that share a grid.
        activations: grids that are given, as for `allocate`. Where the profile measured activations and the cost
            depends on their grids, the others are chosen too, and their damage counts against the tolerance.

    Raises:
        BudgetError: the tolerance is out of reach; says what the most exact plan comes to.
        PlanError, LayerNameError: as for `allocate`.
    """
    if minimise not in ("average_bits", "bit_operations", "latency"):
        raise PlanError(f"minimise is {minimise!r}; use 'bit_operations', 'average_bits' or 'latency'")
    limits: dict[str, Any] = {minimise: NO_LIMIT * (1e12 if minimise == "bit_operations" else 1)}
    budget = Budget(**limits, latency_table=latency_table, activation_bits=activation_bits)
    request = make_request(budget, "milp", "sum", menu, lower, upper, fixed, fused)
    request = with_activations(request, profile, activations)
    source = Source(profile.table(predictor), profile.data, profile.seed, profile.macs, profile.activations)
    choices = make_choices(profile.inventory, source.table, request, source.inputs)
    (limit,) = linear_limits(profile.inventory, choices, request, source.macs, source.inputs)
    found = _solved(choices, limit.cost.table, damage, method)
    cost, bound = limit.amount(found.cost), limit.amount(found.lower_bound)
    limits[minimise] = cost * (1 + 1e-12)
    request = replace(request, budget=replace(budget, **limits))
    plan = solve(profile.inventory, source, request, "sum")
    if method == "gradient" or _total(choices, plan) > damage:
        plan = _with(plan, choices, found)
    return CheapestPlan(plan, cost, bound, _total(choices, plan), minimise)


def _solved(choices: Choices, cost: np.ndarray, damage: float, method: Literal["exact", "gradient"]) -> Cheapest:
    return cheapest_within(
        np.maximum(choices.damage, 0.0),
        cost,
        damage,
        method=method,
        allowed=np.isfinite(choices.damage),
        widths=choices.widths,
        groups=choices.groups,
    )


def _total(choices: Choices, plan: Plan) -> float:
    columns = list(choices.columns(plan.names, plan.activations))
    return float(np.maximum(choices.damage[np.arange(len(columns)), columns], 0.0).sum())


def _with(plan: Plan, choices: Choices, found: Cheapest) -> Plan:
    """Return the plan of `found`, whose bound on the damage is that of the exact plan of the same cost."""
    assert plan.evidence is not None
    rows = np.arange(len(found.selection))
    objective = float(choices.damage[rows, found.selection].sum())
    bound = min(plan.evidence.optimality.lower_bound, objective)
    optimality = Optimality(objective, bound, (objective - bound) / max(abs(objective), 1e-300))
    selection = tuple(int(column) for column in found.selection)
    names = tuple(str(grid) for grid in choices.layers(plan.inventory, selection))
    activations = choices.activations(selection, plan.evidence.request.activations)
    why = ("chosen by projected gradient, rounded up",) * len(names)
    evidence: Evidence = replace(plan.evidence, optimality=optimality, reasons=why)
    return replace(plan, names=names, activations=activations, evidence=evidence)
