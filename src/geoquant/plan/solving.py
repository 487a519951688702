"""Turn evidence and a budget into a plan that provably keeps the budget.

The damages of a table (of weights, and of activations where they are chosen) and the exact storage of every choice make
a multiple-choice knapsack; the solver gives a selection, its value and a proven lower bound. Average bits,
bit-operations and latency are linear in the choices: a column is a pair of grids, so that even the product of their
bits is. The size of the file is not quite (the header's offsets grow by digits), so a byte budget is first relaxed
(proving the bound), then tightened by what the header really takes until the file fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from geoquant.allocation import SOLVERS, Cost, Problem, Solution
from geoquant.allocation import Objective as SolverObjective
from geoquant.errors import BudgetError, PlanError
from geoquant.grids import Grid
from geoquant.models import Inventory, Site
from geoquant.plan.activations import Activations, activation_wishes
from geoquant.plan.budget import Budget
from geoquant.plan.choices import Choices, make_choices
from geoquant.plan.layout import (
    activation_tensors,
    artifact_bytes,
    least_activation_bytes,
    least_bytes,
    site_entries,
)
from geoquant.plan.limits import linear_limits
from geoquant.plan.plan import Evidence, Objective, Optimality, Plan, Request
from geoquant.plan.reasons import reasons
from geoquant.sensitivity import ActivationTable, DamageTable, Profile


def allocate(
    profile: Profile,
    budget: Budget,
    *,
    predictor: str | None = None,
    objective: Objective = "sum",
    solver: str = "milp",
    menu: Sequence[str | int] | None = None,
    lower: float | Mapping[str, float] | None = None,
    upper: float | Mapping[str, float] | None = None,
    fixed: Mapping[str, str | int] | None = None,
    fused: Sequence[str | Sequence[str]] = (),
    activations: Activations | None = None,
) -> Plan:
    r"""Choose a grid for every site so that the predicted damage is least and the budget is kept.

    Args:
        profile: the evidence.
        budget: limits, inclusive of everything stored.
        predictor: which of the profile's tables to use; its first one when None.
        objective: "sum" of damages, "worst" layer, or a function of the vector of damages (one per site,
            in the profile's order) that never falls when a damage rises.
        solver: "milp" (exact), "greedy", "proportional", "gradient", "uniform", or a registered one.
        menu: allow only these widths or grids, such as ``{4, 8, 16}``; those that were not measured are passed over.
        lower: least width of every layer, or of layers by name or ``re:`` pattern.
        upper: largest width, likewise.
        fixed: grid or width per name or pattern; ``"fp32"`` leaves a layer in float.
        fused: groups that share a grid: a list of names, or a pattern whose captured text names the group,
            such as ``r"re:(.*)\.(?:q|k|v)_proj"``.
        activations: activation grids that are given: one for the inputs of every layer, or a grid per name or pattern,
            None for float. Where the profile measured activations and the budget sees them (`Budget.sees_activations`),
            all others are chosen, each among the measured grids. Stored scales count in a budget of bytes.

    Raises:
        BudgetError: no plan fits; says what the smallest possible one takes.
        PlanError: the constraints ask for what was not measured.
        LayerNameError: a name or pattern matches nothing.
    """
    request = make_request(budget, solver, objective, menu, lower, upper, fixed, fused)
    request = with_activations(request, profile, activations)
    source = Source(profile.table(predictor), profile.data, profile.seed, profile.macs, profile.activations)
    return solve(profile.inventory, source, request, objective)


def with_activations(request: Request, profile: Profile, wanted: Activations | None) -> Request:
    """Return the request with the activation grids that are given, and the activations to stay in float."""
    measured = () if profile.activations is None else profile.activations.sites
    operands = [name for name in measured if name not in profile.inventory.names]
    given, in_float = activation_wishes(profile.inventory, wanted, operands)
    return replace(request, activations=given, in_float=in_float)


def make_request(
    budget: Budget,
    solver: str,
    objective: Objective,
    menu: Sequence[str | int] | None,
    lower: float | Mapping[str, float] | None,
    upper: float | Mapping[str, float] | None,
    fixed: Mapping[str, str | int] | None,
    fused: Sequence[str | Sequence[str]],
) -> Request:
    """Freeze the arguments of `allocate`."""
    return Request(
        budget,
        solver,
        objective if isinstance(objective, str) else "custom",
        None if menu is None else tuple(sorted(menu, key=str)),
        _limits(lower),
        _limits(upper),
        tuple((fixed or {}).items()),
        tuple(group if isinstance(group, str) else tuple(group) for group in fused),
    )


def resolve(plan: Plan, budget: Budget, objective: Objective | None = None, **changes: Any) -> Plan:
    """Answer another budget from the evidence in `plan`, without measuring again.

    `changes` replaces other parts of the request: ``solver``, ``menu``, ``lower``, ``upper``, ``fixed``, ``fused``.
    """
    if plan.evidence is None:
        raise PlanError("this plan was written by hand and holds no damage table; profile the model and allocate")
    old = plan.evidence.request
    if objective is None and old.objective == "custom":
        raise PlanError("this plan was solved for a custom objective, which no file can hold; pass objective= again")
    wanted = old.objective if objective is None else objective
    for side in ("lower", "upper"):
        if side in changes:
            changes[side] = _limits(changes[side])
    if "fixed" in changes:
        changes["fixed"] = tuple(dict(changes["fixed"]).items())
    request = replace(old, budget=budget, objective=wanted if isinstance(wanted, str) else "custom", **changes)
    evidence = plan.evidence
    source = Source(evidence.table, evidence.data, evidence.seed, evidence.macs, evidence.inputs)
    return solve(plan.inventory, source, request, wanted)


@dataclass(frozen=True)
class Source:
    """The part of a profile that one plan is solved from; attributes as those of `Evidence`."""

    table: DamageTable
    data: str = ""
    seed: int = 0
    macs: tuple[int, ...] = ()
    inputs: ActivationTable | None = None


def solve(inventory: Inventory, source: Source, request: Request, objective: Objective) -> Plan:
    """Solve one request."""
    choices = make_choices(inventory, source.table, request, source.inputs)
    limits = linear_limits(inventory, choices, request, source.macs, source.inputs)
    selection, optimality = solve_choices(inventory, choices, request, objective, tuple(each.cost for each in limits))
    return plan_of(inventory, source, request, choices, selection, optimality)


def plan_of(
    inventory: Inventory,
    source: Source,
    request: Request,
    choices: Choices,
    selection: tuple[int, ...],
    optimality: Optimality,
) -> Plan:
    """Return the plan of a selection, with its evidence."""
    names = tuple(str(grid) for grid in choices.layers(inventory, selection))
    why = reasons(choices, selection, inventory, source.table.unit)
    evidence = Evidence(source.table, request, optimality, why, source.data, source.seed, source.macs, source.inputs)
    return Plan(inventory, names, evidence, choices.activations(selection, request.activations))


def _limits(value: float | Mapping[str, float] | None) -> tuple[tuple[str, float], ...]:
    if value is None:
        return ()
    return (("re:.*", float(value)),) if isinstance(value, int | float) else tuple(value.items())


def solve_choices(
    inventory: Inventory, choices: Choices, request: Request, objective: Objective, costs: tuple[Cost, ...]
) -> tuple[tuple[int, ...], Optimality]:
    """Solve; with a byte budget, reserve for the header until the file fits."""
    if request.budget.bytes is None:
        solution = _solve(choices, request, objective, costs)
        return _checked(solution, solution.lower_bound)
    return _File(inventory, choices, request, objective, costs, request.budget.bytes).solve()


@dataclass(frozen=True, eq=False)
class _File:
    """The problem of a plan whose file may take so many bytes."""

    inventory: Inventory
    choices: Choices
    request: Request
    objective: Objective
    costs: tuple[Cost, ...]
    budget: int

    def solve(self) -> tuple[tuple[int, ...], Optimality]:
        least = self.least(0)
        cheapest = self.choices.cheapest(least)
        smallest = self.size(cheapest)
        if smallest > self.budget:
            raise BudgetError(
                f"a budget of {self.budget:,} bytes is below the smallest possible plan, which takes "
                f"{smallest:,} bytes; raise the budget or allow narrower grids"
            )
        floor = int(least[np.arange(len(cheapest)), list(cheapest)].sum())
        reserve = smallest - floor
        relaxed = Cost("bytes", least, self.budget - max(reserve - self.header_slack(smallest), 0))
        bound = self.within(relaxed).lower_bound
        limit = floor + 1
        while limit > floor:
            limit = max(self.budget - reserve, floor)
            try:
                solution = self.within(Cost("bytes", least, limit))
            except BudgetError:  # the reserve was too large for what the other limits leave
                break
            size = self.size(solution.selection)
            if size <= self.budget:
                return _checked(solution, bound)
            reserve += size - self.budget
        return _checked(self.solve_by_likely_bytes(), bound)

    def size(self, selection: Sequence[int] | NDArray[np.int64]) -> int:
        """Return the bytes of the whole file."""
        selection = tuple(int(column) for column in selection)
        activations = self.choices.activations(selection, self.request.activations)
        return artifact_bytes(self.inventory, self.choices.layers(self.inventory, selection), activations)

    def within(self, limit: Cost) -> Solution:
        return _solve(self.choices, self.request, self.objective, (*self.costs, limit))

    def least(self, digits: int) -> NDArray[np.int64]:
        """Return what every choice adds to the file at least, with so many digits for the offsets of each tensor."""
        period, sites = self.choices.period, self.inventory.sites
        own = np.zeros((len(self.choices.rows), period), np.int64)
        own[: len(sites)] = [
            [least_bytes(site, grid) + digits * len(site_entries(site, grid)) for grid in self.choices.grids[:period]]
            for site in sites
        ]
        entering = np.array([least_activation_bytes(name) for name in self.choices.inputs], np.int64)
        return np.tile(own, (1, len(entering) // period)) + entering

    def solve_by_likely_bytes(self) -> Solution:
        """Solve with as many digits for every offset as the whole file has, where one digit each led nowhere.

        Choices of more tensors (scales, zero points) then count what they add to the header.
        """
        likely = self.least(2 * (len(str(self.budget)) - 1))
        floor = self.choices.least(likely)
        limit = self.budget - (self.size(self.choices.cheapest(likely)) - floor) + 8
        while limit >= floor:
            solution = self.within(Cost("bytes", likely, limit))
            if self.size(solution.selection) <= self.budget:
                return solution
            limit = min(limit, int(likely[np.arange(len(likely)), solution.selection].sum())) - 1
        raise BudgetError(f"no plan was found within {self.request.budget} at once; raise one of the limits")

    def header_slack(self, smallest: int) -> int:
        """Return how many bytes any plan's header may be shorter than the smallest plan's, its own entries apart.

        Where all choices of a site store the same tensors but for the length of the codes (which come last in the
        file), every offset is at least that of the smallest plan, and only the padding to 8 bytes may differ.
        Otherwise any offset may have as little as one digit, and the tensors of static scales may not be there at all.
        """
        choices, digits = self.choices, len(str(smallest)) - 1
        allowed = np.isfinite(choices.damage)
        columns = np.arange(allowed.shape[1]) % choices.period
        alike = all(
            len({_tensors(site, choices.grids[column]) for column in set(columns[row].tolist())}) == 1
            for site, row in zip(self.inventory.sites, allowed, strict=False)
        )
        static = np.array([least_activation_bytes(name) - len(name or "") for name in choices.inputs])
        steady = all(len(set(static[row].tolist())) == 1 for row in allowed)
        entries = activation_tensors((("", "int8"),)) if not steady else ()
        absent = sum(len(entry.name) + len(str(len(allowed))) + 60 for entry in entries)
        if alike and steady:
            return 7
        return 7 + 2 * digits * (len(self.inventory.others) + 3 * len(self.inventory.sites) + 2) + absent


def _tensors(site: Site, grid: Grid) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return dtype and shape of the tensors of a choice, the length of its codes left open."""
    return tuple(
        (entry.dtype, () if entry.dtype == "U8" and entry.name.endswith(".codes") else entry.shape)
        for entry in site_entries(site, grid)
    )


def _solve(choices: Choices, request: Request, objective: Objective, costs: tuple[Cost, ...]) -> Solution:
    problem = Problem(
        damage=choices.damage,
        costs=costs,
        groups=choices.groups,
        weights=choices.weights,
        widths=choices.widths,
        objective=cast(SolverObjective, objective),  # the problem checks the name
        names=choices.rows,
    )
    return SOLVERS[request.solver](problem)


def _checked(solution: Solution, bound: float) -> tuple[tuple[int, ...], Optimality]:
    bound = min(bound, solution.objective)
    gap = (solution.objective - bound) / max(abs(solution.objective), 1e-300)
    return tuple(int(column) for column in solution.selection), Optimality(solution.objective, bound, gap)
