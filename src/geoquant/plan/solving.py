"""Turn evidence and a budget into a plan that provably keeps the budget.

The damages of a table and the exact storage of every choice make a multiple-choice knapsack; the solver
gives a selection, its value and a proven lower bound. Average bits, bit-operations and latency are linear in the
choices. The size of the file is not quite (the header's offsets grow by digits), so a byte budget is first relaxed
(proving the bound), then tightened by what the header really takes until the file fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from geoquant.allocation import SOLVERS, Cost, Problem, Solution
from geoquant.allocation import Objective as SolverObjective
from geoquant.errors import BudgetError, PlanError, suggest
from geoquant.grids import Grid
from geoquant.models import Inventory, Site, fused_groups, select
from geoquant.plan.activations import Activations, activation_entries
from geoquant.plan.budget import Budget
from geoquant.plan.layout import artifact_bytes, least_bytes, site_entries
from geoquant.plan.limits import Choices, linear_limits
from geoquant.plan.plan import Evidence, Objective, Optimality, Plan, Request
from geoquant.plan.reasons import reasons
from geoquant.sensitivity import DamageTable, Profile

FLOAT = "fp32"


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
        menu: allow only these widths or grids, such as ``{4, 8, 16}``; they must have been measured.
        lower: least width of every layer, or of layers by name or ``re:`` pattern.
        upper: largest width, likewise.
        fixed: grid or width per name or pattern; ``"fp32"`` leaves a layer in float.
        fused: groups that share a grid: a list of names, or a pattern whose captured text names the group,
            such as ``r"re:(.*)\.(?:q|k|v)_proj"``.
        activations: one activation grid for the inputs of every layer, or a grid per name or pattern. They are given,
            not chosen; their stored scales count in a budget of bytes, their bits in one of bit-operations.

    Raises:
        BudgetError: no plan fits; says what the smallest possible one takes.
        PlanError: the constraints ask for what was not measured.
        LayerNameError: a name or pattern matches nothing.
    """
    request = make_request(budget, solver, objective, menu, lower, upper, fixed, fused)
    request = replace(request, activations=activation_entries(profile.inventory, activations))
    table = profile.table(predictor)
    return solve(profile.inventory, table, request, objective, profile.data, profile.seed, profile.macs)


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
    return solve(plan.inventory, evidence.table, request, wanted, evidence.data, evidence.seed, evidence.macs)


def solve(
    inventory: Inventory,
    table: DamageTable,
    request: Request,
    objective: Objective,
    data: str = "",
    seed: int = 0,
    macs: tuple[int, ...] = (),
) -> Plan:
    """Solve one request on one damage table."""
    choices = make_choices(inventory, table, request)
    costs = tuple(limit.cost for limit in linear_limits(inventory, choices, request.budget, macs, request.activations))
    selection, optimality = solve_choices(inventory, choices, request, objective, costs)
    names = tuple(str(choices.grids[column]) for column in selection)
    why = reasons(choices.damage, choices.bits, choices.groups, selection, choices.grids, inventory, table.unit)
    return Plan(inventory, names, Evidence(table, request, optimality, why, data, seed, macs), request.activations)


def make_choices(inventory: Inventory, table: DamageTable, request: Request) -> Choices:
    """Lay out the damage and storage of every choice that the request allows."""
    columns = list(table.grids)
    if FLOAT not in columns:
        columns.append(FLOAT)
    grids = tuple(Grid.parse(name) for name in columns)
    damage = np.full((len(inventory.sites), len(columns)), np.inf)
    for row, site in enumerate(inventory.sites):
        if site.name in table.sites:
            damage[row, : len(table.grids)] = table.row(site.name)
        else:
            damage[row, columns.index(FLOAT)] = 0.0  # not measured: stays in float
    _apply_constraints(inventory, damage, grids, request)
    bits = np.array([[grid.storage(site.matrix_shape).total_bits for grid in grids] for site in inventory.sites])
    index = {name: row for row, name in enumerate(inventory.names)}
    groups = tuple(
        tuple(index[name] for name in group)
        for group in fused_groups(inventory.names, list(request.fused))
        if len(group) > 1
    )
    return Choices(grids, damage, bits.astype(np.int64), groups)


def _apply_constraints(
    inventory: Inventory, damage: NDArray[np.float64], grids: tuple[Grid, ...], request: Request
) -> None:
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
    damage: NDArray[np.float64],
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


def _limits(value: float | Mapping[str, float] | None) -> tuple[tuple[str, float], ...]:
    if value is None:
        return ()
    return (("re:.*", float(value)),) if isinstance(value, int | float) else tuple(value.items())


def solve_choices(
    inventory: Inventory, choices: Choices, request: Request, objective: Objective, costs: tuple[Cost, ...]
) -> tuple[tuple[int, ...], Optimality]:
    """Solve; with a byte budget, reserve for the header until the file fits."""
    if request.budget.bytes is None:
        solution = _solve(inventory, choices, request, objective, costs)
        return _checked(solution, solution.lower_bound)
    least = np.array([[least_bytes(site, grid) for grid in choices.grids] for site in inventory.sites], np.int64)
    cheapest = choices.cheapest(least)
    smallest = artifact_bytes(inventory, [choices.grids[column] for column in cheapest], request.activations)
    if smallest > request.budget.bytes:
        raise BudgetError(
            f"a budget of {request.budget.bytes:,} bytes is below the smallest possible plan, which takes "
            f"{smallest:,} bytes; raise the budget or allow narrower grids"
        )
    rows = np.arange(len(cheapest))
    reserve = smallest - int(least[rows, list(cheapest)].sum())
    slack = _header_slack(inventory, choices, smallest)
    relaxed = Cost("bytes", least, request.budget.bytes - max(reserve - slack, 0))
    bound = _solve(inventory, choices, request, objective, (*costs, relaxed)).lower_bound
    floor = int(least[rows, list(cheapest)].sum())
    limit = floor + 1
    while limit > floor:
        limit = max(request.budget.bytes - reserve, floor)
        try:
            solution = _solve(inventory, choices, request, objective, (*costs, Cost("bytes", least, limit)))
        except BudgetError:  # the reserve was too large for what the other limits leave
            break
        size = artifact_bytes(inventory, [choices.grids[column] for column in solution.selection], request.activations)
        if size <= request.budget.bytes:
            return _checked(solution, bound)
        reserve += size - request.budget.bytes
    return _checked(_solve_by_likely_bytes(inventory, choices, request, objective, costs), bound)


def _solve_by_likely_bytes(
    inventory: Inventory, choices: Choices, request: Request, objective: Objective, costs: tuple[Cost, ...]
) -> Solution:
    """Solve with as many digits for every offset as the whole file has, where one digit each led nowhere.

    Choices of more tensors (scales, zero points) then count what they add to the header.
    """
    assert request.budget.bytes is not None
    digits = 2 * (len(str(request.budget.bytes)) - 1)
    likely = np.array(
        [
            [least_bytes(site, grid) + digits * len(site_entries(site, grid)) for grid in choices.grids]
            for site in inventory.sites
        ],
        np.int64,
    )
    smallest = choices.cheapest(likely)
    real = artifact_bytes(inventory, [choices.grids[column] for column in smallest], request.activations)
    floor = choices.least(likely)
    limit = request.budget.bytes - (real - floor) + 8
    while limit >= floor:
        solution = _solve(inventory, choices, request, objective, (*costs, Cost("bytes", likely, limit)))
        grids = [choices.grids[column] for column in solution.selection]
        if artifact_bytes(inventory, grids, request.activations) <= request.budget.bytes:
            return solution
        limit = min(limit, int(likely[np.arange(len(likely)), solution.selection].sum())) - 1
    raise BudgetError(f"no plan was found within {request.budget} at once; raise one of the limits")


def _header_slack(inventory: Inventory, choices: Choices, smallest: int) -> int:
    """Return how many bytes any plan's header may be shorter than the smallest plan's, its own entries apart.

    Where all choices of a site store the same tensors but for the length of the codes (which come last in the
    file), every offset is at least that of the smallest plan, and only the padding to 8 bytes may differ.
    Otherwise any offset may have as little as one digit.
    """
    alike = all(
        len({_tensors(site, grid) for grid, damage in zip(choices.grids, row, strict=True) if np.isfinite(damage)}) == 1
        for site, row in zip(inventory.sites, choices.damage, strict=True)
    )
    digits = 0 if alike else 2 * (len(str(smallest)) - 1)
    return 7 + digits * (len(inventory.others) + 3 * len(inventory.sites) + 2)  # two for scales of activations


def _tensors(site: Site, grid: Grid) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return dtype and shape of the tensors of a choice, the length of its codes left open."""
    return tuple(
        (entry.dtype, () if entry.dtype == "U8" and entry.name.endswith(".codes") else entry.shape)
        for entry in site_entries(site, grid)
    )


def _solve(
    inventory: Inventory, choices: Choices, request: Request, objective: Objective, costs: tuple[Cost, ...]
) -> Solution:
    problem = Problem(
        damage=choices.damage,
        costs=costs,
        groups=choices.groups,
        weights=np.array([site.weights for site in inventory.sites]),
        widths=np.array([grid.bits for grid in choices.grids]),
        objective=cast(SolverObjective, objective),  # the problem checks the name
    )
    return SOLVERS[request.solver](problem)


def _checked(solution: Solution, bound: float) -> tuple[tuple[int, ...], Optimality]:
    bound = min(bound, solution.objective)
    gap = (solution.objective - bound) / max(abs(solution.objective), 1e-300)
    return tuple(int(column) for column in solution.selection), Optimality(solution.objective, bound, gap)
