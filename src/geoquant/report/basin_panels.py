"""What the page says of a diagnosis: the verdict in words, codewords and widths as tables, slices as figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from geoquant.basin import Diagnosis, Line, Plane, Width
from geoquant.report.basin_figures import line_plot, plane_plot
from geoquant.report.labels import quantity
from geoquant.report.panels import Panel
from geoquant.report.tables import Cell, Table, number_cell


@dataclass(frozen=True, eq=False)
class DiagnosisView:
    """A diagnosis as the page shows it.

    Attributes:
        heading: verdict and plan.
        sentences: why, and what to do.
        tables: codewords, directions, layers.
        panels: slices.
    """

    heading: str
    sentences: tuple[str, ...]
    tables: tuple[Table, ...]
    panels: tuple[Panel, ...]


def diagnosis_view(found: Diagnosis, index: int) -> DiagnosisView:
    """Gather what the page shows of one diagnosis; `index` keeps the ids of several apart."""
    allowed = f"Allowed is a rise of the loss by {found.evidence.tolerance:g} nats per prediction."
    train = (f"To train: {', '.join(found.layers)}.",) if found.layers else ()
    sentences = (allowed, *(f"{_sentence(reason)}" for reason in (*found.reasons, str(found.constructive))), *train)
    panels = [line_panel(line, f"slice-{index}-{place}") for place, line in enumerate(found.lines)]
    panels += [plane_panel(plane, f"plane-{index}-{place}") for place, plane in enumerate(found.planes)]
    tables = [codeword_table(found), width_table("The basin along directions", found.width.joint)]
    if found.width.layers:
        tables.append(width_table("Layers moved alone", found.width.layers))
    remedy = _sentence(f"what to do: {found.remedy}")
    return DiagnosisView(f"{found.verdict}: {found.plan}", (*sentences, remedy), tuple(tables), tuple(panels))


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def codeword_table(found: Diagnosis) -> Table:
    """List the codewords that were tried."""
    rows = tuple(
        (
            Cell(each.name),
            number_cell(each.rise.value, f"{quantity(each.rise.value)} ± {quantity(each.rise.stderr)}"),
            number_cell(each.steps, f"{each.steps:.3f}"),
            Cell("inside" if each.rise.value <= found.evidence.tolerance else "outside"),
            Cell("weights only" if each.weights_only else "weights, scales, norms"),
        )
        for each in found.candidates
    )
    columns = ("codeword", "rise of the loss (nats)", "grid steps away", "basin", "moved")
    caption = f"Codewords that were tried, judged on {found.evidence.nearest.samples:,} samples that made none of them"
    return Table(caption, columns, (False, True, True, False, False), rows)


def width_table(caption: str, widths: Sequence[Width]) -> Table:
    """List how far the basin reaches along each direction."""
    rows = tuple(
        (
            Cell(each.layer or each.direction),
            number_cell(each.radius.value, str(each.radius)),
            number_cell(each.in_steps.value, str(each.in_steps)),
            number_cell(each.in_weights.value, str(each.in_weights)),
            number_cell(each.rise.value, f"{quantity(each.rise.value)} ± {quantity(each.rise.stderr)}"),
            number_cell(each.second_order, quantity(each.second_order)),
            Cell(", ".join(part for part in (each.landform, "wall" if each.wall else None) if part) or "–"),
        )
        for each in widths
    )
    columns = (
        "direction",
        "radius",
        "in grid steps",
        "in weight units",
        "rise at 1 (nats)",
        "second order",
        "landform",
    )
    return Table(caption, columns, (False, *(True,) * 5, False), rows)


def line_panel(line: Line, key: str) -> Panel:
    """Show the loss along one direction."""
    marks = ", ".join(f"{marker.name} at {marker.x / line.step:.2f} grid steps" for marker in line.markers)
    peak = max(line.rise)
    return Panel(
        key,
        f"The loss along the {line.direction}",
        "Rise of the loss over the float model's. Dashed: what is allowed, the basin's edge. Dotted: half grid steps. "
        "Open circles are zero or below. Bars are one standard error.",
        f"Line of {len(line.places)} points, with {marks}; the loss rises by up to {quantity(peak)} nats.",
        line_plot(line),
        (_line_table(line),),
    )


def _line_table(line: Line) -> Table:
    rows = tuple(
        (Cell(f"{place / line.step:.3f}", place), number_cell(rise, f"{quantity(rise)} ± {quantity(error)}"))
        for place, rise, error in zip(line.places, line.rise, line.stderr, strict=True)
    )
    return Table(f"Rise along the {line.direction}", ("grid steps", "rise (nats)"), (True, True), rows)


def plane_panel(plane: Plane, key: str) -> Panel:
    """Show the loss on a plane."""
    names = ", ".join(marker.name for marker in plane.markers)
    inside = sum(value <= plane.tolerance for row in plane.rise for value in row)
    count = len(plane.xs) * len(plane.ys)
    return Panel(
        key,
        "The loss on a plane through the codewords",
        "Darker is higher, each shade is a factor. The line is the basin's edge, dotted lines are half grid steps. "
        "Only weights move on this plane, norms and biases are the float model's.",
        f"Map of {count} points through {names}; {inside} of them lie inside the basin.",
        plane_plot(plane),
        (_plane_table(plane),),
    )


def _plane_table(plane: Plane) -> Table:
    columns = ("across \\ along", *(f"{x:.2f}" for x in plane.xs))
    rows = tuple(
        (Cell(f"{y:.2f}", y), *(number_cell(value, quantity(value)) for value in row))
        for y, row in zip(plane.ys, plane.rise, strict=True)
    )
    return Table("Rise on the plane, nats; axes in grid steps", columns, (True,) * len(columns), rows)
