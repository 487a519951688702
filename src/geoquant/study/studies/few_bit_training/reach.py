"""How far does geoquant's schedule reach: bit-operations saved, at most 0.3 points below float32, on fine levels.

By the source's convention (bits of the wider operand), everything counted from the first step; the convention that
multiplies both operands' bits stands beside it. The best of the rest is the cheapest static, per-pass or cyclic row,
on any levels and with gradients rounded either way, that on average over seeds is at most 0.3 points below float32.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

from geoquant.findings import Claim, Table, Value
from geoquant.study.judging import Finding, judged, spread
from geoquant.study.results import Results
from geoquant.study.studies.few_bit_training.reading import (
    EQUAL,
    OWN,
    gained,
    label,
    mean,
    name_of,
    rivals_of,
    runs,
)

METHOD, LEVELS = "numgeom", "fine"
WANTED = {"float32": 80.0, "seed-amp": 75.0, "amp": 60.0}
"""Percent of bit-operations to be saved against each."""
BEST = 15.0
"""The same against the best of the rest."""
COSTS = ("bit_operations", "bit_operations_product")


def own(results: Results, net: str) -> Results:
    """Return the runs of geoquant's schedule on fine levels."""
    return runs(results, net, METHOD, LEVELS)


def near_float32(results: Results, net: str, cells: Results) -> bool:
    """Say whether runs are at most `EQUAL` points below those of float32, on average over seeds."""
    points = gained(cells, runs(results, net, "float32"))
    return bool(points) and statistics.fmean(points) >= -EQUAL


def saved_percent(cells: Results, others: Results) -> tuple[float, float]:
    """Return the percent of bit-operations saved on average over seeds, by the wider operand and by the product."""
    single, product = (100 * (1 - mean(cells, cost) / mean(others, cost)) for cost in COSTS)
    return single, product


def reaches(rival: str) -> Callable[[Results], Claim]:
    """Judge the bit-operations saved against a static method of `WANTED`."""

    def claim(results: Results) -> Claim:
        found = [
            _finding(results, net, rival, runs(results, net, rival), WANTED[rival]) for net in results.values("net")
        ]
        return judged(_sentence(WANTED[rival], rival), OWN, results, [each for each in found if each is not None])

    return claim


def reaches_best(results: Results) -> Claim:
    """Judge the bit-operations saved against the best of the rest."""
    found = []
    for net in results.values("net"):
        best = best_of_the_rest(results, net)
        if best is not None:
            found.append(_finding(results, net, *best, BEST))
    text = _sentence(BEST, "the cheapest static, per-pass or cyclic method within as many points of float32")
    return judged(text, OWN, results, [each for each in found if each is not None])


def _sentence(wanted: float, rival: str) -> str:
    text = f"{wanted:g} % fewer bit-operations than {rival}, at most {EQUAL} points below float32"
    return f"{text}: {label(METHOD, LEVELS)}"


def _finding(results: Results, net: str, name: str, rival: Results, wanted: float) -> Finding | None:
    mine = own(results, net)
    points = gained(mine, runs(results, net, "float32"))
    if not points or not len(rival):
        return None
    single, product = saved_percent(mine, rival)
    text = f"{name_of(results, net)}: {single:.1f} % fewer than {name} ({product:.1f} % by the product of bits)"
    holds = single >= wanted and near_float32(results, net, mine)
    return Finding(f"{text} at {spread(points, ' points')} against float32", holds)


def best_of_the_rest(results: Results, net: str) -> tuple[str, Results] | None:
    """Return name and runs of the cheapest static, per-pass or cyclic method that is near float32."""
    equal = [(name, cells) for name, cells in rivals_of(results, net) if near_float32(results, net, cells)]
    return min(equal, key=lambda each: mean(each[1], "bit_operations"), default=None)


def reach_table(results: Results) -> Table:
    """List what geoquant's schedule saves on every net, and at what accuracy."""
    rows: list[tuple[Value, ...]] = []
    for net in results.values("net"):
        mine, exact = own(results, net), runs(results, net, "float32")
        if not gained(mine, exact):
            continue
        rivals = [(rival, runs(results, net, rival)) for rival in WANTED]
        best = best_of_the_rest(results, net)
        for name, cells in [*rivals, *([] if best is None else [best])]:
            if len(cells):
                points = (spread(gained(each, exact)) for each in (cells, mine))
                saved = (round(each, 1) for each in saved_percent(mine, cells))
                rows.append((name_of(results, net), name, *points, round(mean(mine, "average_bits"), 2), *saved))
    columns = (
        "net",
        "against",
        "its points against float32",
        "numgeom's points against float32",
        "bits per operation",
        "saved, %",
        "saved by the product of bits, %",
    )
    note = f"{label(METHOD, LEVELS)}. The last row of a net is the cheapest static or cyclic one near float32."
    return Table("reach", "Bit-operations saved by geoquant's schedule", columns, tuple(rows), note)


CLAIMS: tuple[Callable[[Results], Claim], ...] = (*map(reaches, WANTED), reaches_best)
