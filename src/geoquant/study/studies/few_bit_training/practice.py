"""What the cells say of theory: does the descent condition foretell rises and failures, and what do dead zones cost?"""

from __future__ import annotations

import itertools
import re
import statistics
from collections.abc import Callable

from geoquant.findings import Claim, Table, Value
from geoquant.study.judging import Finding, judged, spread
from geoquant.study.results import Result, Results
from geoquant.study.studies.few_bit_training.reading import (
    EQUAL,
    OWN,
    failed,
    failures,
    gained,
    label,
    mean,
    name_of,
    paired,
    runs,
)

LOOKED_EVERY = 25
"""Steps between two that `Practice` looks at."""
MOST = 0.5
KEPT_BITS = (8, 4)
RULES = {
    "both": "both allow",
    "layer-wise only": "the source's allows, the coupled one does not",
    "neither": "neither allows",
}


def looked_at(cell: Result) -> int:
    """Return how many steps of a run were looked at."""
    return int(cell["steps"]) // LOOKED_EVERY


def promised(cell: Result) -> int:
    """Return how many of them the descent condition promised to go down."""
    return int(cell["promised_down"] + cell["promised_up"])


def rises_foretold(results: Results) -> Claim:
    """Ask whether steps that the condition promises nothing of rise more often than those it promises to go down."""
    findings = []
    for net in results.values("net"):
        cells = results.where(net=net).keep(lambda cell: cell.metrics.get("unpromised_up") is not None)
        good, bad = (
            tuple(sum(int(cell[f"{kind}_{way}"]) for cell in cells) for way in ("up", "down"))
            for kind in ("promised", "unpromised")
        )
        if sum(good) and sum(bad):
            text = f"{name_of(results, net)}: {_share(*good)} of the steps that it promised to go down rose, "
            findings.append(Finding(text + f"{_share(*bad)} of the others", _part(*bad) > 2 * _part(*good)))
    text = (
        "Where the descent condition promises nothing, a step raises the loss more than twice as often as where it does"
    )
    return judged(text, OWN, results, findings)


def _part(up: int, down: int) -> float:
    return up / (up + down)


def _share(up: int, down: int) -> str:
    return f"{100 * _part(up, down):.1f} % of {up + down}"


def failures_foretold(results: Results) -> Claim:
    """Ask whether static widths fail just where the error of the gradient is longer than the gradient at most steps."""
    findings = []
    for net, method, rounding, cells in _static(results):
        share = _promised_share(cells)
        bad = sum(failures(results, net, method, None, rounding))
        foretold = share < MOST
        if bad or foretold:
            how = f"{method}{', gradients to nearest' if rounding == 'nearest' else ''}"
            text = f"{name_of(results, net)}, {how}: {100 * share:.0f} % of the steps promised, {bad} of "
            findings.append(Finding(f"{text}{len(cells)} runs failed", foretold == (2 * bad > len(cells))))
    return judged(
        "A static width fails just where the gradient's error is longer than the gradient at most steps",
        OWN,
        results,
        findings,
    )


def _static(results: Results) -> list[tuple[str, str, str, Results]]:
    """Return net, method, rounding of gradients and runs of every static width, by net and bits."""
    found = []
    for net in results.values("net"):
        for (method, rounding), _ in results.where(net=net).by("method", "rounding"):
            cells = runs(results, net, method, None, rounding)
            if method.startswith("uniform:int") and "/" not in method and len(cells):
                found.append((net, method, rounding, cells))
    return sorted(found, key=lambda row: (results.values("net").index(row[0]), _bits(row[1]), row[2]))


def _bits(method: str) -> int:
    digits = re.search(r"\d+", method)
    return int(digits.group()) if digits else 0


def _promised_share(cells: Results) -> float:
    return sum(map(promised, cells)) / max(sum(map(looked_at, cells)), 1)


def dead_zone(results: Results) -> Claim:
    """Compare weights and momentum kept in few bits, rounded to nearest and stochastically."""
    findings = []
    for net, bits in itertools.product(results.values("net"), KEPT_BITS):
        both = {how: kept(results, net, bits, how) for how in ("nearest", "stochastic")}
        lost = gained(both["stochastic"], both["nearest"])
        if lost:
            text = f"{name_of(results, net)}, {bits} bits: {spread(lost, ' points')} between them"
            findings.append(Finding(text, statistics.fmean(lost) > EQUAL))
    text = f"Keeping weights and momentum to nearest (the dead zone) costs over {EQUAL} points against stochastically"
    return judged(text, OWN, results, findings)


def kept(results: Results, net: str, bits: int, rounding: str) -> Results:
    """Return the runs whose weights and momentum are kept in so many bits, as everything else is."""
    return results.where(net=net, rounding=rounding).keep(
        lambda cell: cell.configuration["options"].get("stored") == f"int{bits}"
    )


def state_hurts_first(results: Results) -> Claim:
    """Ask whether keeping weights and momentum in few bits costs more than computing in them."""
    findings = []
    for net, bits in itertools.product(results.values("net"), KEPT_BITS):
        exact, computed = runs(results, net, "float32"), runs(results, net, f"uniform:int{bits}")
        stored = kept(results, net, bits, "stochastic")
        one, other = (gained(cells, exact) for cells in (computed, stored))
        if one and other:
            text = f"{name_of(results, net)}, {bits} bits: {spread(one, ' points')} against float32 with float32 state,"
            holds = statistics.fmean(other) < statistics.fmean(one) - EQUAL
            findings.append(Finding(f"{text} {spread(other, ' points')} with weights and momentum kept so", holds))
    return judged("Bits hurt first in what the optimizer keeps", OWN, results, findings)


def rules_differ(results: Results) -> Claim:
    """Ask whether the source's layer-wise rule allows rounding that the coupled one forbids."""
    findings = []
    for net in results.values("net"):
        counts = rule_counts(results.where(net=net))
        whole = sum(counts.values())
        if whole:
            only = counts.get("layer-wise only", 0)
            text = f"{name_of(results, net)}: in {100 * only / whole:.0f} % of {whole} looks at a layer"
            findings.append(Finding(text, only / whole > 0.1))
    return judged(
        "The layer-wise rule allows, at more than a tenth of the looks, what layers taken together forbid",
        OWN,
        results,
        findings,
    )


def rule_counts(cells: Results) -> dict[str, int]:
    """Return how often layers were allowed their rounding by which rule, in all runs that measured curvature."""
    counts: dict[str, int] = {}
    for cell in cells:
        for name, count in (cell.metrics.get("rules") or {}).items():
            counts[name] = counts.get(name, 0) + count
    return counts


def rule_table(results: Results) -> Table:
    """List, method by method, where the layer-wise and the coupled rule agree."""
    rows: list[tuple[Value, ...]] = []
    for (net, method, levels), cells in results.by("net", "method", "levels"):
        counts = rule_counts(cells)
        whole = sum(counts.values())
        if whole:
            shares = [round(100 * counts.get(name, 0) / whole, 1) for name in RULES]
            rows.append((name_of(results, net), method, levels, whole, *shares))
    columns = ("net", "method", "levels", "looks at a layer", *(f"{words}, %" for words in RULES.values()))
    note = (
        "Of rounding weights as they are rounded at that moment: by ‖H_ii‖‖δ_i‖, or by Σ_j ‖H_ij‖‖δ_j‖, against ‖g_i‖."
    )
    return Table("rules", "The source's layer-wise rule and the coupled one", columns, tuple(rows), note)


def failure_table(results: Results) -> Table:
    """List static widths, and whatever else failed: what was lost, what was not finite, what the condition said."""
    rows: list[tuple[Value, ...]] = []
    for net, method, rounding, cells in _static(results):
        rows.append((name_of(results, net), method, rounding, *_failed_row(results, net, cells)))
    for (net, method, levels, rounding), _ in results.by("net", "method", "levels", "rounding"):
        if not method.startswith("uniform") and any(failures(results, net, method, levels, rounding)):
            cells = runs(results, net, method, levels, rounding)
            rows.append((name_of(results, net), label(method, levels), rounding, *_failed_row(results, net, cells)))
    columns = (
        "net",
        "method",
        "gradients",
        "bits per operation",
        "points against float32",
        "failed",
        "NaN or Inf",
        "steps promised, %",
        "of these rose, %",
    )
    title = "Static widths and failures, and what the descent condition promised"
    return Table("failures", title, columns, tuple(rows))


def _failed_row(results: Results, net: str, cells: Results) -> tuple[Value, ...]:
    exact = runs(results, net, "float32")
    lost, failed_ones = gained(cells, exact), [failed(a, b) for a, b in paired(cells, exact)]
    return (
        round(mean(cells, "average_bits"), 2),
        round(statistics.fmean(lost), 2) if lost else None,
        f"{sum(failed_ones)} of {len(failed_ones)}",
        sum(int(cell["anomalies"]) for cell in cells),
        round(100 * _promised_share(cells)),
        _rose(cells),
    )


def _rose(cells: Results) -> float | None:
    whole = sum(map(promised, cells))
    return round(100 * sum(int(cell["promised_up"]) for cell in cells) / whole, 1) if whole else None


CLAIMS: tuple[Callable[[Results], Claim], ...] = (
    rises_foretold,
    failures_foretold,
    dead_zone,
    state_hurts_first,
    rules_differ,
)
TABLES: tuple[Callable[[Results], Table], ...] = (failure_table, rule_table)
