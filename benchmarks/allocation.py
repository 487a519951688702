"""How long does allocation take, and how near to the proven best does every solver come?

    python benchmarks/allocation.py

Random problems shaped like networks: layer sizes over four decades, sensitivities over seven, damages that
fall roughly as 4**-bits, scales and zero points on top of the codes. Times are medians of five runs of the
whole solver; gaps are to each solver's own proven bound. A second table has several budgets at once.
"""

from __future__ import annotations

import argparse
import statistics

import numpy as np

from common import parser, write_results
from geoquant.allocation import SOLVERS, Cost, Problem, Solution

SIZES = ((60, 7), (1_000, 8), (10_000, 8))
SPREADS = {"smooth": 0.0, "noisy": 0.5, "wild": 2.0}


def network(seed: int, sites: int, choices: int, spread: float, budgets: int = 1, average: float = 3.5) -> Problem:
    """Make one problem; further budgets are bit-operations and a latency table that knows no order."""
    draw = np.random.default_rng(seed)
    sizes = (10 ** draw.uniform(2, 6, sites)).astype(int)
    widths = np.arange(2, 2 + choices)
    damage = (
        10 ** draw.uniform(-6, 1, (sites, 1)) * 4.0**-widths * 10 ** draw.uniform(-spread, spread, (sites, choices))
    )
    bits = sizes[:, None] * widths + 16 * draw.integers(8, 512, (sites, 1))
    operations = (sizes * 10 ** draw.uniform(0, 2, sites)).astype(int)[:, None] * widths
    latency = (sizes[:, None] * draw.uniform(0.5, 2, (sites, choices)) * np.sqrt(widths)).astype(int)
    costs = (
        Cost("bits", bits, int(sizes.sum() * average)),
        Cost("bit-operations", operations, int(operations[:, 0].sum() * average / 2 * 0.95)),
        Cost("cycles", latency, int(latency.min(axis=1).sum() * 1.3)),
    )
    return Problem(damage, costs[:budgets], weights=sizes, widths=widths)


def measure(name: str, problem: Problem, runs: int) -> dict[str, object]:
    """Solve `runs` times; return the median seconds and what the solution is worth."""
    solutions: list[Solution] = [SOLVERS[name](problem) for _ in range(runs)]
    first = solutions[0]
    seconds = sorted(solution.seconds for solution in solutions)
    return {
        "solver": name,
        "sites": problem.n_sites,
        "choices": problem.n_choices,
        "budgets": len(problem.costs),
        "seconds": statistics.median(seconds),
        "seconds_range": [seconds[0], seconds[-1]],
        "objective": first.objective,
        "gap": first.gap,
        "notes": list(first.notes),
    }


def show(row: dict[str, object]) -> None:
    size = f"{row['sites']} x {row['choices']}"
    print(
        f"{row['solver']:13}{size:>12}  {row['damages']:7}{row['budgets']:>8}{row['seconds']:>10.3f}"
        f"{row['objective']:>13.6g}{row['gap']:>11.1e}",
        flush=True,
    )


def main() -> None:
    made = parser(__doc__.splitlines()[0], "allocation")
    made.add_argument("--runs", type=int, default=5, help="runs per row; the median is reported")
    made.add_argument("--seed", type=int, default=1)
    made.add_argument(
        "--several", action=argparse.BooleanOptionalAction, default=True, help="also the rows with several budgets"
    )
    arguments = made.parse_args()
    print(f"{'solver':13}{'problem':>12}  {'damages':7}{'budgets':>8}{'seconds':>10}{'objective':>13}{'gap':>11}")
    rows = []
    for (sites, choices), (kind, spread) in ((size, item) for size in SIZES for item in SPREADS.items()):
        problem = network(arguments.seed, sites, choices, spread)
        for name in SOLVERS.names():
            rows.append({"damages": kind, **measure(name, problem, arguments.runs)})
            show(rows[-1])
    for budgets in (2, 3) if arguments.several else ():
        for sites, choices in SIZES[:2]:
            problem = network(arguments.seed, sites, choices, SPREADS["noisy"], budgets)
            rows.append({"damages": "noisy", **measure("milp", problem, 1)})
            show(rows[-1])
    write_results(arguments, {"rows": rows})


if __name__ == "__main__":
    main()
