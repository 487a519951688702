"""The numbers of the page as tables: plans with their reasons, points, costs, and what each figure shows.

Tables are values; the template turns them into HTML and escapes every text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from geoquant.grids import ActivationGrid
from geoquant.plan import Plan
from geoquant.report.axes import by_width
from geoquant.report.labels import duration, measured, percent, plan_labels, quantity, unit_text
from geoquant.report.sweep import Point
from geoquant.report.verdict import scoreboard
from geoquant.sensitivity import DamageTable, Profile

LONG = 48  # characters of a cell that wraps


@dataclass(frozen=True)
class Cell:
    """One cell: what is shown, and what it sorts by (its text when None)."""

    text: str
    key: float | None = None


@dataclass(frozen=True)
class Table:
    """A table with a caption; the first column names the row.

    Attributes:
        caption: says what the rows are.
        columns: headings.
        numeric: which columns align right.
        rows: cells.
    """

    caption: str
    columns: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[tuple[Cell, ...], ...]

    @property
    def prose(self) -> tuple[bool, ...]:
        """Which columns hold sentences, and therefore wrap."""
        return tuple(
            name in ("why", "how") or any(len(row[place].text) > LONG for row in self.rows)
            for place, name in enumerate(self.columns)
        )


def number_cell(value: float | None, text: str) -> Cell:
    """Return a cell that sorts by its value; what was not measured comes last."""
    return Cell(text, float("inf") if value is None else value)


def plans_table(plans: Sequence[Plan], float_bytes: int) -> Table:
    """Compare the plans: size, predicted objective, how far from optimal at most."""
    rows, quantized = [], any(plan.activations for plan in plans)
    for label, plan in zip(plan_labels(plans), plans, strict=True):
        evidence = plan.evidence
        row = [
            Cell(label),
            number_cell(plan.average_bits, f"{plan.average_bits:.4f}"),
            *((_activation_cell(plan),) if quantized else ()),
            number_cell(plan.bytes, f"{plan.bytes:,}"),
            number_cell(plan.bytes / float_bytes, percent(plan.bytes / float_bytes)),
        ]
        if evidence is None:
            row += [Cell("written by hand"), Cell("–"), Cell("–"), Cell("–")]
        else:
            gap = evidence.optimality.gap
            row += [
                Cell(f"{evidence.table.predictor} + {evidence.request.solver}"),
                Cell(f"{evidence.request.objective}, {unit_text(evidence.table.unit)}"),
                number_cell(evidence.optimality.objective, quantity(evidence.optimality.objective)),
                number_cell(gap, "optimal" if gap <= 1e-9 else f"≤ {100 * gap:.2g} %"),
            ]
        rows.append(tuple(row))
    columns = (
        "plan",
        "average bits",
        *(("activation bits",) if quantized else ()),
        "bytes",
        "of float",
        "evidence + solver",
        "objective",
        "predicted",
        "gap to the proven bound",
    )
    numeric = (False, True, *((True,) if quantized else ()), True, True, False, False, True, True)
    return Table("Size and predicted damage", columns, numeric, tuple(rows))


def _activation_cell(plan: Plan) -> Cell:
    """Average bits of the measured activations; without a measurement, how many are quantized."""
    average = plan.average_activation_bits
    if not plan.activations:
        return number_cell(None, "float")
    return number_cell(average, f"{len(plan.activations)} given" if average is None else f"{average:.4f}")


def plan_table(plan: Plan, label: str) -> Table:
    """List the layers of one plan: grids of weights and input, stored bits, bytes, damages, reason; then operands."""
    reasons = plan.evidence.reasons if plan.evidence is not None else ("",) * len(plan.names)
    grids, damages = dict(plan.activations), plan.input_damages

    def entering(name: str) -> tuple[Cell, ...]:
        if not plan.activations:
            return ()
        damage = damages.get(name)
        return Cell(grids.pop(name, "float")), number_cell(damage, quantity(damage))

    rows: list[tuple[Cell, ...]] = []
    for site, name, cost, damage, reason in zip(
        plan.inventory.sites, plan.names, plan.costs, plan.damages, reasons, strict=True
    ):
        bits = cost.total_bits / site.weights
        rows.append(
            (
                Cell(site.name),
                number_cell(site.weights, f"{site.weights:,}"),
                Cell(name),
                number_cell(bits, f"{bits:.2f}"),
                number_cell(cost.bytes, f"{cost.bytes:,}"),
                number_cell(damage, quantity(damage)),
                *entering(site.name),
                Cell(reason),
            )
        )
    rows += [(Cell(name), *(Cell("–"),) * 5, *entering(name), Cell("")) for name in list(grids)]
    unit = "" if plan.evidence is None else f" ({unit_text(plan.evidence.table.unit)})"
    inputs = ("input", f"its damage{unit}") if plan.activations else ()
    columns = ("layer", "weights", "grid", "bits", "bytes", f"damage{unit}", *inputs, "why")
    right = (False, True, False, True, True, True, *(False, True)[: len(inputs)], False)
    return Table(f"Layers of the plan “{label}”", columns, right, tuple(rows))


def bits_table(plans: Sequence[Plan]) -> Table:
    """Show the grid of every layer in every plan."""
    rows = tuple(
        (Cell(name), *(number_cell(plan.grids[row].bits, plan.names[row]) for plan in plans))
        for row, name in enumerate(plans[0].inventory.names)
    )
    columns = ("layer", *plan_labels(plans))
    return Table("Grid of every layer in every plan", columns, (False,) * len(columns), rows)


def damage_table(table: DamageTable) -> Table:
    """Show damage and standard error of every layer on every grid, by one predictor."""
    return _damages(table, by_width(table.grids), "layer", f"{table.predictor}: {unit_text(table.unit)}")


def input_damage_table(table: DamageTable) -> Table:
    """Show damage and standard error of every activation on every activation grid."""
    order = sorted(range(len(table.grids)), key=lambda column: ActivationGrid.parse(table.grids[column]).bits)
    return _damages(table, order, "input", f"{table.predictor}, inputs: {unit_text(table.unit)}")


def _damages(table: DamageTable, order: Sequence[int], first: str, caption: str) -> Table:
    rows = []
    for site, damage, stderr in zip(table.sites, table.damage, table.stderr, strict=True):
        texts = (quantity(damage[j]) + (f" ± {quantity(stderr[j])}" if stderr[j] else "") for j in order)
        rows.append((Cell(site), *(number_cell(damage[j], text) for j, text in zip(order, texts, strict=True))))
    columns = (first, *(table.grids[j] for j in order))
    return Table(caption, columns, (False, *(True,) * len(order)), tuple(rows))


def points_table(points: Sequence[Point], float_point: Point | None) -> Table:
    """List every evaluated plan; the float model comes first."""
    first = () if float_point is None else (float_point,)
    rows = []
    for point in dict.fromkeys((*first, *points)):
        rows.append(
            (
                Cell(point.method),
                Cell(point.label),
                number_cell(point.average_bits, f"{point.average_bits:.3f}"),
                number_cell(point.bytes, f"{point.bytes:,}"),
                number_cell(
                    point.accuracy.value, measured(100 * point.accuracy.value, 100 * point.accuracy.stderr, 2) + " %"
                ),
                number_cell(
                    point.cross_entropy.value, measured(point.cross_entropy.value, point.cross_entropy.stderr, 4)
                ),
                number_cell(point.kl.value, f"{quantity(point.kl.value)} ± {quantity(point.kl.stderr)}"),
            )
        )
    columns = ("method", "plan", "average bits", "bytes", "accuracy", "cross-entropy (nats)", "KL to float (nats)")
    return Table("Evaluated plans", columns, (False, False, True, True, True, True, True), tuple(rows))


def scoreboard_table(points: Sequence[Point]) -> Table:
    """Count for every method how often it is better or worse than the best uniform grid of about its size."""
    rows = []
    for method, pairs in scoreboard(points).items():
        outcomes = [pair.outcome for pair in pairs]
        mean = 100 * sum(pair.difference for pair in pairs) / len(pairs) if pairs else None
        counts = [outcomes.count(outcome) for outcome in ("better", "equal", "worse")]
        rows.append(
            (
                Cell(method),
                number_cell(len(pairs), str(len(pairs))),
                *(number_cell(count, str(count)) for count in counts),
                number_cell(mean, "–" if mean is None else f"{mean:+.1f} points".replace("-", "−")),
            )
        )
    columns = ("method", "sizes compared", "better", "no difference", "worse", "mean difference")
    return Table("Against the best uniform grid of about the same size", columns, (False,) + (True,) * 5, tuple(rows))


def cost_table(profile: Profile) -> Table:
    """Show what each predictor cost."""
    rows = tuple(
        (
            Cell(table.predictor),
            Cell(unit_text(table.unit)),
            number_cell(table.cost, quantity(table.cost)),
            number_cell(seconds, duration(seconds) if any(profile.seconds) else "–"),
            number_cell(table.samples, f"{table.samples:,}"),
        )
        for table, seconds in zip(profile.tables, profile.seconds, strict=True)
    )
    columns = ("predictor", "unit", "forward-equivalents", "time", "samples")
    return Table("Cost of each predictor", columns, (False, False, True, True, True), rows)


def seconds_table(seconds: Mapping[str, float]) -> Table | None:
    """List the steps of the whole path with their wall time; None when nothing was timed."""
    if not seconds:
        return None
    rows = [(Cell(step), number_cell(value, duration(value))) for step, value in seconds.items()]
    rows.append((Cell("together"), number_cell(sum(seconds.values()), duration(sum(seconds.values())))))
    return Table("Wall time of each step", ("step", "time"), (False, True), tuple(rows))
