"""What the cells of the few-bit-training study say: bit-operations at equal accuracy, failures, shapes of schedules."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator

from geoquant.findings import Claim
from geoquant.study.judging import Finding, judged, spread
from geoquant.study.results import Result, Results

SOURCE = "End-to-End QAT via Numerical Geometry"
OWN = "docs/training.md, Measured"
"""Where geoquant's own aims and questions stand."""
EQUAL = 0.3
"""Points of accuracy that count as equal, the source's own figure."""
FAILED = 5.0
"""A run failed when it met NaN or ended so many points below float32."""
STATIC = ("float32", "uniform", "amp", "seed-amp")
NUMGEOM = (("seed18", "coarse"), ("numgeom", "coarse"), ("numgeom", "fine"))
"""The source's schedule as it is written, and geoquant's on the source's levels and on finer ones."""


def runs(results: Results, net: str, method: str, levels: str | None = None, rounding: str = "stochastic") -> Results:
    """Keep the runs of a method with its default options."""
    found = results.where(net=net, method=method, rounding=rounding).keep(
        lambda cell: not cell.configuration["options"]
    )
    return found if levels is None else found.where(levels=levels)


def label(method: str, levels: str) -> str:
    """Name a method as a reader knows it; levels only where a method chooses among them.

    >>> label("seed18", "fine"), label("uniform:int4", "coarse")
    ('NumGeom-QAT as written, fine levels', 'uniform:int4')
    """
    if method.startswith(STATIC):
        return method
    named = {"seed18": "NumGeom-QAT as written", "numgeom": "geoquant's numgeom"}.get(method, method)
    return f"{named}, {levels} levels"


def name_of(results: Results, net: str) -> str:
    """Return a net with its data."""
    return f"{net} on {results.where(net=net)[0]['data']}"


def paired(cells: Results, others: Results) -> Iterator[tuple[Result, Result]]:
    """Yield the runs of two methods of the same seed."""
    known = {cell["seed"]: cell for cell in others}
    for cell in cells:
        if cell["seed"] in known:
            yield cell, known[cell["seed"]]


def saved(cells: Results, others: Results) -> tuple[list[float], list[float]]:
    """Return, per seed, the percent of bit-operations saved and the points of accuracy gained (below 0: lost)."""
    both = list(paired(cells, others))
    share = [100 * (1 - a["bit_operations"] / b["bit_operations"]) for a, b in both]
    return share, gained(cells, others)


def cheaper(method: str, levels: str, rival: str, wanted: float) -> Callable[[Results], Claim]:
    """Judge the bit-operations that a schedule saves against a static one at equal accuracy."""

    def claim(results: Results) -> Claim:
        findings = []
        for net in results.values("net"):
            share, points = saved(runs(results, net, method, levels), runs(results, net, rival))
            if share:
                text = f"{name_of(results, net)}: {spread(share, ' %')} saved at {spread(points, ' points')}"
                holds = statistics.fmean(share) >= wanted and statistics.fmean(points) > -EQUAL
                findings.append(Finding(text, holds))
        text = f"{wanted:g} % fewer bit-operations or more saved against {rival}, with less than {EQUAL} points lost"
        return judged(f"{text}: {label(method, levels)}", SOURCE, results, findings)

    return claim


def gained(cells: Results, others: Results) -> list[float]:
    """Return, per seed, the points of accuracy gained (below 0: lost)."""
    return [a["accuracy"] - b["accuracy"] for a, b in paired(cells, others)]


def mean(cells: Results, metric: str) -> float:
    """Return the mean of a metric over some cells, at least one."""
    return statistics.fmean(cell[metric] for cell in cells)


def low_early(results: Results) -> Claim:
    """Ask whether the first quarter of a run is kept in fewer bits than the last, after the warm-up of the source."""
    findings = []
    for net, (method, levels) in itertools.product(results.values("net"), NUMGEOM):
        cells = runs(results, net, method, levels)
        ends = [(_part(cell, 0.0, 0.25), _part(cell, 0.75, 1.0)) for cell in cells if cell.rows]
        if ends:
            early, late = (statistics.fmean(each) for each in zip(*ends, strict=True))
            text = f"{name_of(results, net)}, {label(method, levels)}: {early:.1f} bits in the first quarter"
            findings.append(Finding(f"{text}, {late:.1f} in the last", late > early + 0.25))
    return judged("Precision is low early in training and high late", SOURCE, results, findings)


def _part(cell: Result, start: float, end: float) -> float:
    """Return the mean bits of a part of a run; the source's own schedule begins with an epoch of 32 bits, left out."""
    warm = cell["steps"] / cell["epochs"] if cell["method"] == "seed18" else 0
    rows = [row for row in cell.rows if row["step"] >= warm]
    return statistics.fmean(row["bits"] for row in rows[int(start * len(rows)) : int(end * len(rows))])


def failed(cell: Result, exact: Result) -> bool:
    """Say whether a run failed beside the float32 run of the same seed."""
    return bool(cell["anomalies"] > 0 or cell["accuracy"] < exact["accuracy"] - FAILED)


def failures(
    results: Results, net: str, method: str, levels: str | None = None, rounding: str = "stochastic"
) -> list[bool]:
    """Return, per seed, whether a method failed on a net."""
    exact = runs(results, net, "float32")
    return [failed(a, b) for a, b in paired(runs(results, net, method, levels, rounding), exact)]


def eight_bits_fail(results: Results) -> Claim:
    """Ask whether training in 8 bits throughout fails on two nets of three."""
    findings = []
    for net, rounding in itertools.product(results.values("net"), ("stochastic", "nearest")):
        found = failures(results, net, "uniform:int8", None, rounding)
        if found:
            text = f"{name_of(results, net)}, gradients rounded {rounding}: {sum(found)} of {len(found)} runs failed"
            findings.append(Finding(text, any(found)))
    return judged("Uniform 8-bit training fails on two of three nets", SOURCE, results, findings)


def numgeom_succeeds(results: Results) -> Claim:
    """Ask whether adaptive precision never failed."""
    findings = []
    for net, (method, levels) in itertools.product(results.values("net"), NUMGEOM):
        found = failures(results, net, method, levels)
        if found:
            text = f"{name_of(results, net)}, {label(method, levels)}: {sum(found)} of {len(found)} runs failed"
            findings.append(Finding(text, not any(found)))
    return judged("Adaptive precision succeeds on all nets", SOURCE, results, findings)


def combined_better(results: Results) -> Claim:
    """Compare curvature and gradient together with either alone."""
    findings = []
    for net, levels, alone in itertools.product(results.values("net"), ("coarse", "fine"), ("gradient", "curvature")):
        share, points = saved(runs(results, net, "combined", levels), runs(results, net, alone, levels))
        if share:
            text = f"{name_of(results, net)}, {levels}, against {alone}: "
            text += f"{spread(share, ' %')} at {spread(points, ' points')}"
            holds = statistics.fmean(share) >= 5 and statistics.fmean(points) > -EQUAL
            findings.append(Finding(text, holds))
    text = "Curvature and gradient together save 5–10 % of the bit-operations of either alone at equal accuracy"
    return judged(text, SOURCE, results, findings)


def dominates(results: Results) -> Claim:
    """Ask whether any static or cyclic method is at least as accurate for fewer bit-operations."""
    findings = []
    for net, (method, levels) in itertools.product(results.values("net"), NUMGEOM):
        cells = runs(results, net, method, levels)
        if len(cells):
            cost, accuracy = mean(cells, "bit_operations"), mean(cells, "accuracy")
            better = [
                name
                for name, rival in rivals_of(results, net)
                if mean(rival, "bit_operations") < cost and mean(rival, "accuracy") >= accuracy
            ]
            text = f"{name_of(results, net)}, {label(method, levels)}: "
            text += f"cheaper and as accurate are {', '.join(better)}" if better else "nothing cheaper is as accurate"
            findings.append(Finding(text, not better))
    return judged("NumGeom-QAT dominates the frontier of accuracy and bit-operations", SOURCE, results, findings)


def rivals_of(results: Results, net: str) -> list[tuple[str, Results]]:
    """Return name and runs of every static, per-pass or cyclic method on a net."""
    found = []
    for (method, levels, rounding), _ in results.where(net=net).by("method", "levels", "rounding"):
        cells = runs(results, net, method, levels, rounding)
        if method.startswith((*STATIC, "cpt")) and len(cells):
            name = f"{method}{' fine' if method == 'cpt' and levels == 'fine' else ''}"
            found.append((f"{name}{' nearest' if rounding == 'nearest' else ''}", cells))
    return found


CLAIMS = (
    *(cheaper(method, levels, "float32", 30) for method, levels in NUMGEOM),
    *(cheaper(method, levels, "seed-amp", 10) for method, levels in NUMGEOM),
    low_early,
    eight_bits_fail,
    numgeom_succeeds,
    combined_better,
    dominates,
)
