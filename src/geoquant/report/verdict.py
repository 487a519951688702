"""Does the evidence pay? One sentence, computed from the points, that also says when uniform is as good.

A plan is held against the best uniform grid of about its size: among all uniform points that take at most
5 % more bytes than the plan, the most accurate one, provided that one of them is within 5 % of the plan's
size (else there is nothing fair to compare with). The tolerance favours the baseline. A difference counts
when it exceeds two standard errors, taken as if the two evaluations were independent; they share their
data, so that asks for more than it must.

The verdict speaks of the first method that is not uniform, in the order of the points; taking the best of
many methods on the evaluation data would flatter. `scoreboard` holds all of them to the same rule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from geoquant.report.labels import percent, quantity
from geoquant.report.palette import is_uniform
from geoquant.report.sweep import Point

TOLERANCE = 0.05
STANDARD_ERRORS = 2.0


@dataclass(frozen=True)
class Comparison:
    """A plan and the best uniform grid of about its size."""

    guided: Point
    uniform: Point

    @property
    def difference(self) -> float:
        """Accuracy of the plan minus that of the uniform grid, as a share of one."""
        return self.guided.accuracy.value - self.uniform.accuracy.value

    @property
    def stderr(self) -> float:
        """Standard error of the difference if the evaluations were independent; an upper bound in practice."""
        return math.hypot(self.guided.accuracy.stderr, self.uniform.accuracy.stderr)

    @property
    def outcome(self) -> str:
        """Say "better", "worse" or "equal" (within two standard errors) of the plan."""
        if abs(self.difference) <= STANDARD_ERRORS * self.stderr or self.difference == 0:
            return "equal"
        return "better" if self.difference > 0 else "worse"


@dataclass(frozen=True)
class Verdict:
    """What the points say: outcome ("better", "worse", "mixed", "equal" or "none"), text, evidence."""

    outcome: str
    text: str
    comparisons: tuple[Comparison, ...]


def compare(points: Sequence[Point], method: str) -> tuple[Comparison, ...]:
    """Hold every plan of `method` against the best uniform grid of about its size, smallest plan first."""
    uniform = [point for point in points if is_uniform(point.method)]
    pairs = []
    for point in sorted((p for p in points if p.method == method), key=lambda p: p.bytes):
        rivals = [rival for rival in uniform if rival.bytes <= (1 + TOLERANCE) * point.bytes]
        if any(rival.bytes >= (1 - TOLERANCE) * point.bytes for rival in rivals):
            pairs.append(Comparison(point, max(rivals, key=lambda rival: rival.accuracy.value)))
    return tuple(dict.fromkeys(pairs))


def guided_methods(points: Sequence[Point]) -> tuple[str, ...]:
    """Return the methods that are not uniform, in order of first appearance."""
    return tuple(dict.fromkeys(point.method for point in points if not is_uniform(point.method)))


def scoreboard(points: Sequence[Point]) -> dict[str, tuple[Comparison, ...]]:
    """Compare every method with the best uniform grid of about its size."""
    return {method: compare(points, method) for method in guided_methods(points)}


def verdict(points: Sequence[Point]) -> Verdict:
    """Sum up in words whether the first guided method beats the best uniform grid at about equal bytes."""
    methods = guided_methods(points)
    if not methods:
        what = "only uniform grids were evaluated" if points else "no plan was evaluated on data"
        return Verdict("none", f"Nothing is claimed about accuracy: {what}.", ())
    pairs = compare(points, methods[0])
    if not pairs:
        what = f"no uniform grid was evaluated within 5 % of the size of a {methods[0]} plan"
        return Verdict("none", f"Nothing is claimed about accuracy: {what}.", ())
    counts = {outcome: sum(pair.outcome == outcome for pair in pairs) for outcome in ("better", "worse", "equal")}
    decided = [pair for pair in pairs if pair.outcome != "equal"]
    largest = max(decided or pairs, key=lambda pair: abs(pair.difference))
    if not decided:
        outcome = "equal"
    elif counts["better"] and counts["worse"]:
        outcome = "mixed"
    else:
        outcome = largest.outcome
    return Verdict(outcome, f"{_headline(largest, methods[0])} {_tally(counts, len(pairs))}", pairs)


def _headline(pair: Comparison, method: str) -> str:
    """State one comparison with all its numbers."""
    plan = "geoquant's plan" if method == "geoquant" else f"the {method} plan"
    ours, theirs = percent(pair.guided.accuracy.value), percent(pair.uniform.accuracy.value)
    grid = f"the best uniform grid ({pair.uniform.label}, {pair.uniform.bytes:,} bytes)"
    at = f"t {pair.guided.bytes:,} bytes"
    if pair.outcome == "better":
        return f"A{at} {plan} keeps {ours} where {grid} keeps {theirs}."
    if pair.outcome == "worse":
        return f"A{at} {plan} keeps only {ours} where {grid} keeps {theirs}."
    margin = f"{100 * STANDARD_ERRORS * pair.stderr:.1f} points"
    divergence = (
        f"KL to the float model {quantity(pair.guided.kl.value)} against {quantity(pair.uniform.kl.value)} nats"
    )
    return (
        f"Uniform is as good here: a{at} {plan} keeps {ours} and {grid} {theirs}, a difference within the error "
        f"(±{margin}; {divergence})."
    )


def _tally(counts: dict[str, int], total: int) -> str:
    """Say how the comparisons at all sizes came out, so that one good size cannot speak for the rest."""
    if total == 1:
        return "No other size was compared."
    words = {"better": "better", "worse": "worse", "equal": "no different beyond two standard errors"}
    if total in counts.values():
        (outcome,) = (name for name, count in counts.items() if count)
        return f"At all {total} sizes compared, the plan is {words[outcome]}."
    parts = [f"{words[outcome]} at {count}" for outcome, count in counts.items() if count]
    return f"Of {total} sizes compared, the plan is {' and '.join(', '.join(parts).rsplit(', ', 1))}."
