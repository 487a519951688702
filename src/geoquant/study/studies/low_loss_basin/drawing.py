"""Figures of the low-loss-basin study: the loss over grids, the course of training, and the basin's width."""

from __future__ import annotations

from collections.abc import Callable

from geoquant.findings import Figure, Series, Table, Value
from geoquant.study.results import Results
from geoquant.study.studies.low_loss_basin.reading import LINES, TRACED, grids, happened, rise

PLACES = 4
FLOOR = 1e-5
"""Rises below this, and falls, are drawn here on the logarithmic axis."""

Draw = Callable[[Results], Figure | None]


def _net(results: Results, place: int) -> Results | None:
    names = grids(results).values("net")
    return grids(results).where(net=names[place]) if place < len(names) else None


def over_grids(place: int) -> Draw:
    """Draw the rise of the loss over the grids of one net."""

    def figure(results: Results) -> Figure | None:
        cells = _net(results, place)
        if cells is None:
            return None
        names = tuple(str(grid) for grid in cells.values("grid"))
        series = []
        for key, name in LINES.items():
            points = [[rise(cell, key) for cell in cells.where(grid=grid)] for grid in names]
            series.append(Series(name, names, tuple(max(sum(each) / len(each), FLOOR) for each in points)))
        title = f"{cells[0]['net']} on {cells[0]['data']}"
        ends = "; ".join(f"{each.name} {each.y[0]:.2g} nats" for each in series)
        return Figure(
            f"over-grids-{place + 1}",
            "lines",
            f"Rounding and training on the grid: {title}",
            "grid",
            "loss above that of the float net, nats",
            tuple(series),
            f"Four lines over grids from coarse to fine. On {names[0]}: {ends}.",
            log_y=True,
            note=f"Test data. What is below {FLOOR:g} nats is drawn there.",
        )

    return figure


def course(place: int) -> Draw:
    """Draw f(Q(w)) and f(w) over the steps of training on coarse grids."""

    def figure(results: Results) -> Figure | None:
        cells = _net(results, place)
        traced = [] if cells is None else [cell for cell in cells.where(grid=TRACED) if cell.rows]
        if not traced:
            return None
        series = []
        for cell in traced:
            steps = tuple(float(row["step"]) for row in cell.rows)
            for key, name in (("deployed", "f(Q(w))"), ("latent", "f(w)")):
                values = tuple(row[key] for row in cell.rows)
                series.append(Series(f"{name}, {cell['grid']}, seed {cell['seed']}", steps, values))
        ends = "; ".join(f"{each.name} from {each.y[0]:.3g} to {each.y[-1]:.3g}" for each in series)
        return Figure(
            f"course-{place + 1}",
            "lines",
            f"The course of training on the grid: {traced[0]['net']} on {traced[0]['data']}",
            "step",
            "loss on training batches, nats",
            tuple(series),
            f"Lines over the steps. {ends}.",
            log_y=True,
        )

    return figure


def widths(results: Results) -> Figure | None:
    """Scatter the basin's width in grid steps against the rise after rounding."""
    series = []
    for (net,), cells in grids(results).by("net"):
        known = [cell for cell in cells if cell.metrics.get("width_in_steps")]
        if known:
            x = tuple(float(cell["width_in_steps"]) for cell in known)
            y = tuple(max(rise(cell, "nearest"), FLOOR) for cell in known)
            series.append(Series(str(net), x, y, (), tuple(str(cell["grid"]) for cell in known)))
    if not series:
        return None
    return Figure(
        "width-and-rise",
        "scatter",
        "The basin's width, measured beforehand, and what rounding then did",
        "width of the basin along the rounding error, in steps of the grid",
        "loss after rounding above float, nats",
        tuple(series),
        f"A point a net and grid, {sum(len(each.x) for each in series)} in all; wide basins are on the right.",
        log_x=True,
        log_y=True,
    )


FIGURES: tuple[Draw, ...] = (
    *(over_grids(place) for place in range(PLACES)),
    *(course(place) for place in range(PLACES)),
    widths,
)


def losses(results: Results) -> Table:
    """List all losses, what was predicted, and what happened."""
    rows: list[tuple[Value, ...]] = []
    for cell in grids(results):
        shown = [round(rise(cell, name), 4) for name in (*LINES, "float_further_gptq")]
        words = (cell.metrics.get("predicted", ""), happened(cell))
        rows.append((cell["net"], cell["grid"], cell["seed"], round(cell["float"], 4), *shown, *words))
    told = ("float trained on, then GPTQ", "predicted", "happened")
    columns = ("net", "grid", "seed", "float, nats", *LINES.values(), *told)
    return Table("losses", "Loss above that of the float net, in nats", columns, tuple(rows))


TABLES = (losses,)
