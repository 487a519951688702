"""What is there to choose from, and what limits the choice?

A site (a layer's weight, say) takes exactly one of several choices (grids). Each choice does a damage and
takes a cost from every budget: bits, bytes, bit-operations, microseconds of a latency table. This module
states such a problem and answers what a given selection is worth; it knows no models and solves nothing
(see `geoquant.allocation.milp` and its neighbours).

Costs are integers, so that "within the budget" is exact and not a matter of rounding.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from geoquant.arrays import Floats
from geoquant.errors import BudgetError, PlanError

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

Objective = Literal["sum", "worst"] | Callable[[Floats], float]
"""What is made small: the sum of the damages, the worst of them, or a function of all of them, which must
not fall when a damage rises (see `geoquant.allocation.check_monotone`)."""

EXACT_FLOAT = 2**53
"""Integers up to this are exact in float64; total costs stay below it."""


def same_values(left: Any, right: Any) -> bool:
    """Compare two dataclasses field by field, arrays by their contents; fields with ``compare=False`` do not count."""
    return type(left) is type(right) and all(
        np.array_equal(getattr(left, field.name), getattr(right, field.name))
        if isinstance(getattr(left, field.name), np.ndarray)
        else getattr(left, field.name) == getattr(right, field.name)
        for field in fields(left)
        if field.compare
    )


def read_only(array: npt.NDArray[Any]) -> Any:
    """Return a copy of `array` that cannot be written to."""
    array = np.array(array)
    array.flags.writeable = False
    return array


@dataclass(frozen=True, eq=False)
class Cost:
    """One linear budget: what each choice takes from it, and how much there is.

    Attributes:
        name: the unit, as an error message should say it: "bits", "bytes", "bit-operations".
        table: (n_sites, n_choices) int64, not negative.
        limit: the total that may not be exceeded, an integer in the same unit.

    >>> Cost("bits", np.array([[20, 40], [10, 30]]), 50).total(np.array([1, 0]))
    50
    """

    name: str
    table: IntArray
    limit: int

    def __post_init__(self) -> None:
        table = np.asarray(self.table)
        if table.ndim != 2 or table.dtype.kind not in "iuf":
            raise PlanError(f"the costs in {self.name} need a (sites, choices) table of numbers, not {table.shape}")
        if table.dtype.kind == "f" and not np.array_equal(table, np.floor(table)):
            raise PlanError(f"the costs in {self.name} must be whole numbers; round them up, or use a smaller unit")
        if table.size and table.min() < 0:
            raise PlanError(f"the costs in {self.name} hold a negative number, {table.min()}; costs are 0 or more")
        if table.size and table.max() >= EXACT_FLOAT:
            raise PlanError(f"a cost of {table.max()} {self.name} is beyond 2**53; use a larger unit")
        object.__setattr__(self, "table", read_only(table.astype(np.int64)))
        try:
            object.__setattr__(self, "limit", operator.index(self.limit))
        except TypeError:
            raise BudgetError(f"the limit in {self.name} must be an integer, not {self.limit}; round it down") from None

    def __eq__(self, other: object) -> bool:
        return same_values(self, other)

    def total(self, selection: IntArray) -> int:
        """Return what `selection` (n_sites,) takes from this budget."""
        return int(self.table[np.arange(len(selection)), selection].sum())


@dataclass(frozen=True, eq=False)
class Problem:
    """One choice per site, least damage, within every budget.

    Attributes:
        damage: (n_sites, n_choices) float64; infinite where a choice is forbidden. Slightly negative damages
            (measurement noise) are taken as they are.
        costs: the budgets, each inclusive; none means that nothing limits the choice.
        groups: sites that must take the same choice, such as the projections of one fused kernel.
        weights: (n_sites,) number of parameters; ones when not given. Used by the width-based strategies.
        widths: (n_choices,) or (n_sites, n_choices) bits per choice; 1, 2, 3 ... when not given.
        objective: "sum", "worst" or a function of the damages (n_sites,) that never falls when one rises.
        allowed: (n_sites, n_choices) bool; where False the choice is forbidden.
        names: what error messages call the sites; "site 0", "site 1" ... when not given.

    Raises `PlanError` when shapes disagree, a damage is NaN, or a site or group is left without a choice.

    >>> damage = [[4.0, 1.0], [3.0, 2.0]]
    >>> problem = Problem(damage, (Cost("bits", np.array([[20, 40], [10, 30]]), 50),))
    >>> problem.value(np.array([1, 0])), problem.totals(np.array([1, 0])), problem.fits(np.array([1, 1]))
    (4.0, (50,), False)
    """

    damage: Floats
    costs: tuple[Cost, ...] = ()
    groups: tuple[tuple[int, ...], ...] = ()
    weights: IntArray | None = None
    widths: Floats | None = None
    objective: Objective = "sum"
    allowed: BoolArray | None = None
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        damage = np.asarray(self.damage, dtype=np.float64)
        if damage.ndim != 2 or 0 in damage.shape:
            raise PlanError(f"damage needs a (sites, choices) table with at least one of each, not {damage.shape}")
        allowed = np.ones(damage.shape, bool) if self.allowed is None else np.asarray(self.allowed, bool)
        weights = np.ones(len(damage), np.int64) if self.weights is None else np.asarray(self.weights)
        widths = np.arange(1.0, damage.shape[1] + 1) if self.widths is None else np.asarray(self.widths, np.float64)
        self._check_shapes(damage, allowed, weights, widths)
        if np.isnan(damage[allowed]).any() or (damage[allowed] == -np.inf).any():
            raise PlanError("damage holds NaN or -inf for an allowed choice; forbid that choice or measure it again")
        allowed = allowed & np.isfinite(np.where(allowed, damage, np.inf))
        put = object.__setattr__
        put(self, "damage", read_only(np.where(allowed, damage, np.inf)))
        put(self, "allowed", read_only(allowed))
        put(self, "weights", read_only(weights.astype(np.int64)))
        put(self, "widths", read_only(np.broadcast_to(widths, damage.shape)))
        put(self, "costs", tuple(self.costs))
        put(self, "groups", tuple(tuple(int(site) for site in group) for group in self.groups))
        put(self, "names", tuple(self.names))
        self._check_choices()

    def _check_shapes(self, damage: Floats, allowed: BoolArray, weights: IntArray, widths: Floats) -> None:
        shape = damage.shape
        tables = [(f"the costs in {cost.name}", cost.table.shape) for cost in self.costs]
        for what, found in [("allowed", allowed.shape), *tables]:
            if found != shape:
                raise PlanError(f"{what} has shape {found}, but damage has {shape}; both are (sites, choices)")
        if weights.shape != shape[:1] or widths.shape not in (shape, shape[1:]):
            raise PlanError(f"weights {weights.shape} or widths {widths.shape} do not fit a damage table of {shape}")
        if self.names and len(self.names) != shape[0]:
            raise PlanError(f"{len(self.names)} names were given for {shape[0]} sites; give one each, or none")
        if not (callable(self.objective) or self.objective in ("sum", "worst")):
            raise PlanError(f"the objective is {self.objective!r}; use 'sum', 'worst' or a function of the damages")
        seen = [site for group in self.groups for site in group]
        if len(seen) != len(set(seen)) or any(not 0 <= site < shape[0] for site in seen):
            raise PlanError(f"the groups {self.groups} must name sites 0 to {shape[0] - 1}, each at most once")

    def _check_choices(self) -> None:
        for site in np.flatnonzero(~self.mask.any(axis=1))[:1]:
            raise PlanError(f"{self.label(site)} has no allowed choice left; allow one, or leave the site out")
        for group in self.groups:
            if group and not self.mask[list(group)].all(axis=0).any():
                named = ", ".join(self.label(site) for site in group)
                raise PlanError(f"the fused sites {named} have no allowed choice in common; split the group")
        for cost in self.costs:
            if sum(np.where(self.mask, cost.table, 0).max(axis=1).tolist()) >= EXACT_FLOAT:
                raise PlanError(f"the costs in {cost.name} add up to 2**53 or more; use a larger unit")

    def __eq__(self, other: object) -> bool:
        return same_values(self, other)

    @property
    def n_sites(self) -> int:
        """Number of sites."""
        return len(self.damage)

    @property
    def n_choices(self) -> int:
        """Number of choices (columns), forbidden ones included."""
        return int(self.damage.shape[1])

    @property
    def mask(self) -> BoolArray:
        """(n_sites, n_choices) where a choice is allowed."""
        assert self.allowed is not None  # set in __post_init__
        return self.allowed

    @property
    def width_table(self) -> Floats:
        """(n_sites, n_choices) bits per choice."""
        assert self.widths is not None  # set in __post_init__
        return self.widths

    @cached_property
    def cost_tables(self) -> IntArray:
        """(n_budgets, n_sites, n_choices) all costs in one array."""
        return np.array([cost.table for cost in self.costs], np.int64).reshape(-1, *self.damage.shape)

    @cached_property
    def limits(self) -> IntArray:
        """(n_budgets,) all limits, those beyond 2**53 brought down to it."""
        return np.array([max(min(cost.limit, EXACT_FLOAT), -EXACT_FLOAT) for cost in self.costs], np.int64)

    def label(self, site: int) -> str:
        """Return what a person calls the site."""
        return self.names[site] if self.names else f"site {site}"

    def damages(self, selection: IntArray) -> Floats:
        """Return the damage of each site (n_sites,) under `selection`."""
        return self.damage[np.arange(self.n_sites), selection]

    def value(self, selection: IntArray) -> float:
        """Return the objective of `selection`; sums are rounded once, so they do not depend on the order."""
        return self.value_of(self.damages(selection))

    def value_of(self, damages: Floats) -> float:
        """Return the objective of the damages (n_sites,); `PlanError` when a user's function gives NaN."""
        if self.objective == "sum":
            return math.fsum(damages)
        if self.objective == "worst":
            return float(damages.max())
        assert callable(self.objective)
        value = float(self.objective(damages))
        if math.isnan(value):
            raise PlanError("the objective function returned NaN; it must give a number for every set of damages")
        return value

    def totals(self, selection: IntArray) -> tuple[int, ...]:
        """Return the exact cost of `selection` in every budget."""
        return tuple(cost.total(selection) for cost in self.costs)

    def fits(self, selection: IntArray) -> bool:
        """Say whether `selection` is allowed, keeps groups together and exceeds no budget."""
        selection = np.asarray(selection)
        return (
            bool(self.mask[np.arange(self.n_sites), selection].all())
            and all(len(set(selection[list(group)].tolist())) <= 1 for group in self.groups)
            and all(total <= cost.limit for total, cost in zip(self.totals(selection), self.costs, strict=True))
        )

    def restrict(
        self,
        lower: float | Sequence[float] | Floats = -math.inf,
        upper: float | Sequence[float] | Floats = math.inf,
        menu: Collection[float] | None = None,
    ) -> Problem:
        """Allow only widths from `lower` to `upper` (scalars or one per site) and, if given, those on the `menu`.

        >>> problem = Problem(np.zeros((2, 4)), widths=[2, 3, 4, 8])
        >>> problem.restrict(lower=[2, 4], menu={4, 8}).allowed.tolist()
        [[False, False, True, True], [False, False, True, True]]
        """
        per_site = np.ones(self.n_sites)
        low, high = (np.asarray(bound, np.float64) * per_site for bound in (lower, upper))
        inside = (self.width_table >= low[:, None]) & (self.width_table <= high[:, None])
        if menu is not None:
            inside &= np.isin(self.width_table, np.array(sorted(menu), np.float64))
        return replace(self, allowed=self.mask & inside)

    def fix(self, site: int, choice: int) -> Problem:
        """Return the problem in which `site` can only take `choice`.

        >>> Problem(np.zeros((2, 2))).fix(0, 1).allowed.tolist()
        [[False, True], [True, True]]
        """
        allowed = np.array(self.mask)
        allowed[site] &= np.arange(self.n_choices) == choice
        return replace(self, allowed=allowed)

    def merged(self, objective: Literal["sum", "worst"] | None = None) -> Merged:
        """Return a problem with one site per group, and the way back.

        Costs and weights of a group add up; damages add up for "sum" and the worst one counts for "worst".
        A function of all damages has no such short form: say which of the two is meant by `objective`.

        >>> fused = Problem([[1.0, 2.0], [3.0, 5.0], [0.0, 1.0]], groups=((0, 1),)).merged()
        >>> fused.problem.damage.tolist(), fused.expand(np.array([1, 0])).tolist()
        ([[4.0, 7.0], [0.0, 1.0]], [1, 1, 0])
        """
        chosen = objective or self.objective
        if callable(chosen):
            raise PlanError("a function of the damages cannot be merged; ask for the 'sum' or the 'worst' form")
        if not any(len(group) > 1 for group in self.groups):
            same = not self.groups and chosen == self.objective
            alone = self if same else replace(self, groups=(), objective=chosen)
            return Merged(alone, read_only(np.arange(self.n_sites)))
        return _merge(self, chosen)


@dataclass(frozen=True, eq=False)
class Merged:
    """A problem without groups and, per original site, the row (block) that stands for it: (n_sites,)."""

    problem: Problem
    block_of: IntArray

    @cached_property
    def members(self) -> tuple[IntArray, ...]:
        """The original sites of each block, ascending."""
        order = np.argsort(self.block_of, kind="stable")
        return tuple(np.split(order, np.flatnonzero(np.diff(self.block_of[order])) + 1))

    def expand(self, selection: IntArray) -> IntArray:
        """Return the selection of the original sites."""
        return np.asarray(selection, np.int64)[self.block_of]


def _merge(problem: Problem, objective: Literal["sum", "worst"]) -> Merged:
    leader = np.arange(problem.n_sites)
    for group in problem.groups:
        leader[list(group)] = min(group, default=0)
    leaders, block_of = np.unique(leader, return_inverse=True)
    shape = (len(leaders), problem.n_choices)

    def gathered(values: npt.NDArray[Any], combine: np.ufunc, start: float) -> npt.NDArray[Any]:
        result = np.full((len(leaders), *values.shape[1:]), start, values.dtype)
        combine.at(result, block_of, values)
        return result

    assert problem.weights is not None
    weights = gathered(problem.weights, np.add, 0)
    share = problem.weights / np.maximum(weights, 1)[block_of]
    damage = gathered(
        problem.damage, np.add if objective == "sum" else np.maximum, 0 if objective == "sum" else -np.inf
    )
    allowed = np.ones(shape, bool)
    np.logical_and.at(allowed, block_of, problem.mask)
    smaller = replace(
        problem,
        damage=damage,
        costs=tuple(replace(cost, table=gathered(cost.table, np.add, 0)) for cost in problem.costs),
        groups=(),
        weights=weights,
        widths=gathered(problem.width_table * share[:, None], np.add, 0.0).round(9),
        objective=objective,
        allowed=allowed,
        names=tuple(problem.label(site) for site in leaders) if problem.names else (),
    )
    return Merged(smaller, read_only(block_of))
