"""What is the least cost at which the composed error stays within a tolerance?

The problem of "Curvature-Guided Bit Allocation" (docs/sources.md): minimise bit-operations (or bytes, or time)
subject to Σᵢ Δᵢ(bᵢ) ∏_{j>i} Lⱼ ≤ ε. It is the allocation problem with its roles swapped, and as such a knapsack:
`exact` solves it with a proof. `gradient` does as the source says: projected gradient descent on fractional widths,
then rounding up to the levels. The composition is that of a chain; whether it bounds a network is for the caller to
know.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import wrightomega

from geoquant.allocation.exact import Proven
from geoquant.allocation.feasibility import cheapest, minimum_costs
from geoquant.allocation.gradient import fitted
from geoquant.allocation.problem import BoolArray, Cost, IntArray, Problem, read_only
from geoquant.allocation.protocol import lower_bound, solve
from geoquant.arrays import Floats
from geoquant.errors import BudgetError, PlanError

RESOLUTION = 2**40
"""Errors are counted in units of the tolerance over this, rounded up."""
ROUNDING = 1e-15
DOUBLINGS = 30


@dataclass(frozen=True, eq=False)
class Cheapest:
    """A selection within the tolerance, and its proof.

    Attributes:
        selection: (n_sites,) chosen column per site.
        cost: exact total.
        error: composed error, at most the tolerance.
        lower_bound: no selection within the tolerance costs less.
        notes: how it was found.
    """

    selection: IntArray
    cost: int
    error: float
    lower_bound: float
    notes: tuple[str, ...] = ()


def composed_errors(local: npt.ArrayLike, lipschitz: npt.ArrayLike) -> Floats:
    """Return what each choice adds to the composed error: local error × the Lipschitz constants of all later layers.

    Args:
        local: (n_sites, n_choices) local errors Δ in the order of execution, at the perturbed inputs.
        lipschitz: (n_sites,) constants of the exact maps, in the same order.

    >>> composed_errors([[0.1], [0.2], [0.4]], [5.0, 2.0, 3.0]).ravel().round(9).tolist()   # × 6, × 3, × 1
    [0.6, 0.6, 0.4]
    """
    errors, constants = np.asarray(local, np.float64), np.asarray(lipschitz, np.float64)
    if errors.ndim != 2 or constants.shape != errors.shape[:1] or not (constants >= 0).all():
        raise PlanError(
            f"local errors (sites, choices) and a constant of 0 or more per site are needed, not {errors.shape} and "
            f"{constants.shape}"
        )
    later = np.append(np.cumprod(constants[::-1])[::-1][1:], 1.0)
    return np.asarray(errors * later[:, None], np.float64)


def cheapest_within(
    error: npt.ArrayLike,
    cost: npt.ArrayLike,
    tolerance: float,
    *,
    method: Literal["exact", "gradient"] = "exact",
    allowed: npt.ArrayLike | None = None,
    widths: npt.ArrayLike | None = None,
    groups: tuple[tuple[int, ...], ...] = (),
) -> Cheapest:
    """Minimise the sum of `cost` subject to the sum of `error` being at most `tolerance`.

    Args:
        error: (n_sites, n_choices) contributions to the composed error, 0 or more, such as `composed_errors` gives.
        cost: (n_sites, n_choices) whole numbers: bit-operations, bits.
        tolerance: ε, above 0, in the unit of the errors.
        method: "exact", or "gradient" with rounding up.
        allowed: (n_sites, n_choices); all when None. The source's least widths p* are such a mask.
        widths: (n_choices,) bits, for "gradient"; 1, 2, 3 ... when None.
        groups: sites that must choose alike.

    Raises:
        BudgetError: no selection is that exact; says what the most exact one reaches.
        PlanError: an error is negative or not finite where it is allowed, or the tolerance is not above 0.

    >>> bits = np.array([2, 4, 8])
    >>> error = np.array([[4.0], [1.0]]) * 2.0**-bits
    >>> answer = cheapest_within(error, np.array([[100], [300]]) * bits, 0.4)
    >>> answer.selection.tolist(), answer.cost, answer.lower_bound   # 0.0156 + 0.25
    ([2, 0], 1400, 1400.0)
    """
    errors = np.asarray(error, np.float64)
    mask = np.ones(errors.shape, bool) if allowed is None else np.asarray(allowed, bool)
    _check(errors, mask, tolerance)
    counted = Cost("cost", np.asarray(cost), 0)  # refuses costs that are not whole
    sound, relaxed = (
        Problem(
            counted.table.astype(np.float64),
            (_limited(errors, tolerance, up),),
            groups,
            widths=None if widths is None else np.asarray(widths),
            allowed=mask,
        )
        for up in (True, False)
    )
    if method not in ("exact", "gradient"):
        raise PlanError(f"the method is {method!r}; use 'exact' or 'gradient'")
    solution = _exactly(sound, relaxed, tolerance) if method == "exact" else _by_gradient(sound, relaxed, tolerance)
    total = counted.total(solution.selection)
    reached = math.fsum(errors[np.arange(len(errors)), solution.selection])
    bound = min(solution.bound, float(total))
    return Cheapest(read_only(solution.selection), total, reached, bound, solution.notes)


def _check(errors: Floats, mask: BoolArray, tolerance: float) -> None:
    if not (math.isfinite(tolerance) and tolerance > 0):
        raise PlanError(f"the tolerance must be a finite number above 0, not {tolerance}")
    if errors.ndim != 2 or mask.shape != errors.shape or not ((errors >= 0) & np.isfinite(errors))[mask].all():
        raise PlanError("errors need a (sites, choices) table of finite numbers, 0 or more, wherever they are allowed")


def _limited(errors: Floats, tolerance: float, up: bool) -> Cost:
    """Return the errors in whole parts of the tolerance: rounded up they are safe, rounded down they only relax."""
    parts = np.where(np.isfinite(errors), np.minimum(errors / tolerance, 2.0), 2.0) * RESOLUTION
    whole = np.ceil(parts * (1 + ROUNDING)) if up else np.floor(parts * (1 - ROUNDING))
    return Cost("parts of the tolerance", whole, RESOLUTION)


def _feasible(sound: Problem, tolerance: float) -> IntArray:
    """Return the most exact selection, or say that even this one errs too much."""
    try:
        return cheapest(sound.merged().problem)
    except BudgetError:
        least = minimum_costs(sound)[0] / RESOLUTION * tolerance
        raise BudgetError(
            f"a composed error of {tolerance:g} is out of reach: the most exact choices come to {least:g}; allow a "
            "larger error or wider grids"
        ) from None


def _exactly(sound: Problem, relaxed: Problem, tolerance: float) -> Proven:
    _feasible(sound, tolerance)
    found = solve(sound)
    return Proven(found.selection, solve(relaxed).lower_bound, found.notes)


def _by_gradient(sound: Problem, relaxed: Problem, tolerance: float) -> Proven:
    """Descend on fractional widths, round up; climb further where the levels err more than the fitted curve."""
    exact = _feasible(sound, tolerance)
    merged = sound.merged()
    problem = merged.problem
    ladders = tuple(_rungs(problem, site) for site in range(problem.n_sites))
    bits = fractional_widths(*_curves(problem, ladders))
    rung = [_first_not_below(problem, site, ladder, bits[site]) for site, ladder in enumerate(ladders)]
    climbed = 0
    while not problem.fits(selection := np.array([ladder[at] for ladder, at in zip(ladders, rung, strict=True)])):
        site = _best_climb(problem, ladders, rung)
        if site is None:
            selection, climbed = exact, -1
            break
        rung[site], climbed = rung[site] + 1, climbed + 1
    notes = {0: "rounded up", -1: "the most exact selection"}.get(climbed, f"rounded up and {climbed} steps further")
    return Proven(merged.expand(selection), lower_bound(relaxed), (notes,))


Rungs = tuple[int, ...]


def _rungs(problem: Problem, site: int) -> Rungs:
    """Return the allowed choices of a site by width; of equal widths the one that errs least."""
    width, error, cost = problem.width_table[site], problem.cost_tables[0, site], problem.damage[site]
    found: dict[float, int] = {}
    for choice in np.lexsort((cost, error, width)).tolist():
        if problem.mask[site, choice]:
            found.setdefault(float(width[choice]), choice)
    return tuple(found.values())


def _curves(problem: Problem, ladders: tuple[Rungs, ...]) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Fit error = 2**(log_kappa − slope·bits), in tolerances, and cost = price·bits.

    Returns log_kappa, slope, price, and the least and largest widths, each (n_sites,).
    """
    rows = []
    for site, ladder in enumerate(ladders):
        columns = list(ladder)
        width = problem.width_table[site, columns]
        log_kappa, slope = fitted(width, problem.cost_tables[0, site, columns] / RESOLUTION)
        spread = width - width.mean()
        price = float(spread @ problem.damage[site, columns]) / max(float(spread @ spread), 1e-300)
        rows.append((log_kappa, slope, max(price, 0.0), width[0], width[-1]))
    log_kappa, slope, price, low, high = np.array(rows).T
    return log_kappa, slope, price, low, high


def fractional_widths(log_kappa: Floats, slope: Floats, price: Floats, low: Floats, high: Floats) -> Floats:
    """Minimise price·b subject to Σ 2**(log_kappa − slope·b) ≤ 1 and low ≤ b ≤ high, by projected gradient.

    The gradient is constant, so steps may grow without bound; where even `high` errs too much, `high` is returned.

    Without a box the optimum gives each site a share of the error in proportion to its price:

    >>> one = np.ones(2)
    >>> fractional_widths(np.log2([4.0, 4.0]), one, np.array([1.0, 3.0]), -20 * one, 20 * one).round(6).tolist()
    [4.0, 2.415037]
    """
    direction = price / max(float(price.max()), 1e-300)
    bits = _nearest(high, log_kappa, slope, low, high)
    for doubling in range(DOUBLINGS):
        moved = _nearest(bits - 2.0**doubling * direction, log_kappa, slope, low, high)
        if np.abs(moved - bits).max() < 1e-10:
            break
        bits = moved
    return bits


def _nearest(bits: Floats, log_kappa: Floats, slope: Floats, low: Floats, high: Floats) -> Floats:
    """Project onto the widths within box and error: b − bits = μ·(falling rate of the error at b), for the least μ."""
    rate = slope * np.log(2.0)
    reach = (log_kappa * np.log(2.0) - rate * bits) + 2 * np.log(rate)

    def at(log_multiplier: float) -> Floats:
        return np.asarray(np.clip(bits + wrightomega(log_multiplier + reach).real / rate, low, high), np.float64)

    def fits(found: Floats) -> bool:
        return float(np.exp2(log_kappa - slope * found).sum()) <= 1.0

    if fits(np.clip(bits, low, high)):
        return np.asarray(np.clip(bits, low, high), np.float64)
    if not fits(high):
        return high
    least, most = -1.0, 1.0
    while not fits(at(most)):
        most *= 2
    while fits(at(least)):
        least *= 2
    for _ in range(200):
        middle = (least + most) / 2
        least, most = (least, middle) if fits(at(middle)) else (middle, most)
    return at(most)


def _first_not_below(problem: Problem, site: int, ladder: Rungs, bits: float) -> int:
    width = problem.width_table[site, list(ladder)]
    return min(int((width < bits - 1e-9).sum()), len(ladder) - 1)


def _best_climb(problem: Problem, ladders: tuple[Rungs, ...], rung: list[int]) -> int | None:
    """Return the site whose next rung takes most error away per cost; None when none takes any."""
    best, best_ratio = None, 0.0
    for site, (ladder, at) in enumerate(zip(ladders, rung, strict=True)):
        if at + 1 < len(ladder):
            here, there = ladder[at], ladder[at + 1]
            gain = float(problem.cost_tables[0, site, here] - problem.cost_tables[0, site, there])
            ratio = gain / max(float(problem.damage[site, there] - problem.damage[site, here]), 1e-300)
            if ratio > best_ratio:
                best, best_ratio = site, ratio
    return best
