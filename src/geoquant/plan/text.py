"""Plans as tables that a person reads in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from geoquant.errors import PlanError

if TYPE_CHECKING:
    from geoquant.plan.plan import Plan


def align(rows: Sequence[Sequence[str]], right: Sequence[bool]) -> str:
    """Join rows into lines with aligned columns; `right` says which columns align right.

    >>> print(align([("a", "10"), ("bcd", "2")], (False, True)))
    a    10
    bcd   2
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(right))]
    lines = []
    for row in rows:
        cells = zip(row, widths, right, strict=True)
        lines.append("  ".join(f"{cell:>{width}}" if r else f"{cell:<{width}}" for cell, width, r in cells).rstrip())
    return "\n".join(lines)


def plan_text(plan: Plan) -> str:
    """Return the plan as a table with totals and its optimality."""
    rows = [["layer", "weights", "grid", "bits", "bytes", "damage"]]
    for site, name, cost, damage in zip(plan.inventory.sites, plan.names, plan.costs, plan.damages, strict=True):
        shown = "" if damage is None else f"{damage:.2e}"
        bits = f"{cost.total_bits / site.weights:.2f}"
        rows.append([site.name, f"{site.weights:,}", name, bits, f"{cost.bytes:,}", shown])
    if plan.activations:
        _add_activations_(rows, plan)
    lines = [align(rows, (False, True, False, True, True, True, False, True)[: len(rows[0])]), "", summary(plan)]
    return "\n".join(lines)


def _add_activations_(rows: list[list[str]], plan: Plan) -> None:
    """Add columns with the grid of each layer's input and its damage where known, and a row per operand."""
    grids, damages = dict(plan.activations), plan.input_damages
    known = any(damage is not None for damage in damages.values())

    def cells(name: str) -> list[str]:
        damage = damages.get(name)
        return [grids.pop(name, ""), *([f"{damage:.2e}" if damage is not None else ""] if known else [])]

    rows[0] += ["input", *(["its damage"] if known else [])]
    for row, name in zip(rows[1:], plan.inventory.names, strict=True):
        row += cells(name)
    rows += [[name, "", "", "", "", "", *cells(name)] for name in list(grids)]


def summary(plan: Plan) -> str:
    """Return one line: size, average bits, and how good the plan is at its own objective."""
    text = f"{plan.average_bits:.4f} average bits, {plan.bytes:,} bytes on disk"
    if plan.activations:
        text += f", {len(plan.activations)} quantized activations"
        if plan.average_activation_bits is not None:
            text += f" of {plan.average_activation_bits:.4f} average bits"
    if plan.evidence is None:
        return text
    evidence = plan.evidence
    if evidence.request.budget.bit_operations is not None:
        text += f", {plan.bit_operations:.4g} bit-operations"
    if evidence.request.budget.latency is not None:
        text += f", {plan.latency:.6g} ms"
    unit = evidence.table.unit or "score, ranks only"
    gap = evidence.optimality.gap
    best = "optimal" if gap <= 1e-9 else f"at most {100 * gap:.2g} % from optimal"
    return (
        f"{text}; {evidence.request.objective} of {evidence.table.predictor} {evidence.optimality.objective:.4g} "
        f"({unit}), {best} for a budget of {evidence.request.budget}, by {evidence.request.solver}"
    )


def diff_rows(first: Plan, second: Plan) -> list[dict[str, object]]:
    """List the layers whose grids differ: grids, change of bytes, damages."""
    if first.inventory.names != second.inventory.names:
        mine, other = set(first.inventory.names), set(second.inventory.names)
        raise PlanError(
            f"the plans are for different models: {len(mine - other)} layers only in the first, "
            f"{len(other - mine)} only in the second"
        )
    rows: list[dict[str, object]] = []
    for row, site in enumerate(first.inventory.sites):
        if first.names[row] != second.names[row]:
            rows.append(
                {
                    "layer": site.name,
                    "weights": site.weights,
                    "first": first.names[row],
                    "second": second.names[row],
                    "bytes": second.costs[row].bytes - first.costs[row].bytes,
                    "damage_first": first.damages[row],
                    "damage_second": second.damages[row],
                }
            )
    return rows


def diff_text(first: Plan, second: Plan) -> str:
    """Return the difference of two plans as a table; says so when there is none."""
    rows = diff_rows(first, second)
    head = f"first:  {summary(first)}\nsecond: {summary(second)}"
    inputs = _diff_activations(first, second)
    if not rows:
        return f"{head}\n\n{inputs or 'no layer differs'}"
    table = [("layer", "weights", "first", "second", "bytes")]
    for row in rows:
        names = (str(row["layer"]), f"{row['weights']:,}", str(row["first"]), str(row["second"]))
        table.append((*names, f"{row['bytes']:+,}"))
    text = f"{head}\n\n{align(table, (False, True, False, False, True))}"
    return f"{text}\n\n{inputs}" if inputs else text


def _diff_activations(first: Plan, second: Plan) -> str:
    """Return a table of the activations whose grids differ; empty where there is none."""
    mine, other = dict(first.activations), dict(second.activations)
    names = [name for name in {**mine, **other} if mine.get(name) != other.get(name)]
    table = [
        ("input", "first", "second"),
        *((name, mine.get(name, "float"), other.get(name, "float")) for name in names),
    ]
    return align(table, (False, False, False)) if names else ""
