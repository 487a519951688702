"""The source's figures of training in few bits: frontier, schedules, failures, gradient and curvature over time."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from geoquant.findings import Figure, Series, Table, Value
from geoquant.study.results import Result, Results
from geoquant.study.studies.few_bit_training.reach import saved_percent
from geoquant.study.studies.few_bit_training.reading import FAILED, NUMGEOM, failures, label, mean, name_of, runs

PLACES = 3
"""Nets that get figures of their own."""
HISTOGRAM = (
    ("uniform:int8", None, "stochastic"),
    ("uniform:int8", None, "nearest"),
    ("uniform:int4", None, "stochastic"),
    ("uniform:int4", None, "nearest"),
    ("seed18", "coarse", "stochastic"),
    ("numgeom", "fine", "stochastic"),
)

SHOWN = (("seed18", "coarse"), ("numgeom", "fine"))
"""Whose precision is drawn over time: the source's schedule as written, and geoquant's."""

Draw = Callable[[Results], Figure | None]


def frontier(place: int) -> Draw:
    """Draw accuracy over bit-operations for the net at a place of the list; None where there are fewer nets.

    Methods that end far below float32 are named in the note: drawn, they would press all others into a line.
    """

    def figure(results: Results) -> Figure | None:
        if place >= len(results.values("net")):
            return None
        net = results.values("net")[place]
        exact = runs(results, net, "float32")
        if not len(exact):
            return None
        series, far = [], []
        for (method, levels, rounding), _ in results.where(net=net).by("method", "levels", "rounding"):
            cells = runs(results, net, method, levels, rounding)
            accuracy = cells.summary("accuracy")
            if accuracy is None:
                continue
            name = label(method, levels).replace(" levels", "") + (", nearest" if rounding == "nearest" else "")
            cost = 100 * mean(cells, "bit_operations") / mean(exact, "bit_operations")
            if accuracy.mean < mean(exact, "accuracy") - FAILED:
                far.append(f"{name} {accuracy.mean:.1f} % at {cost:.1f} %")
            else:
                series.append(Series(name, (cost,), (accuracy.mean,), (accuracy.deviation,), (str(accuracy),)))
        points = "; ".join(f"{each.name} {each.y[0]:.1f} %" for each in series)
        note = "Means and deviations over seeds. Up and to the left is better."
        return Figure(
            f"frontier-{place + 1}",
            "scatter",
            f"Accuracy over bit-operations of training: {name_of(results, net)}",
            "bit-operations by the wider operand, % of float32",
            "accuracy on test images, %",
            tuple(series),
            f"A point a method. {points}.",
            log_x=True,
            note=f"{note} Far below, not drawn: {'; '.join(far)}." if far else note,
        )

    return figure


def schedule(place: int, method: str, levels: str) -> Draw:
    """Draw forward bits of each layer over the steps of one run."""

    def figure(results: Results) -> Figure | None:
        cell = _first(results, place, method, levels)
        if cell is None or not cell["layers"]:
            return None
        steps = tuple(float(step) for step in cell["moments"])
        rows = zip(cell["layers"], cell["schedule"], strict=True)
        series = tuple(Series(layer, steps, tuple(float(each) for each in bits)) for layer, bits in rows)
        ends = "; ".join(f"{each.name} from {each.y[0]:.0f} to {each.y[-1]:.0f} bits" for each in series)
        return Figure(
            f"schedule-{method}-{place + 1}",
            "heatmap",
            f"Forward precision over training, {label(method, levels)}: {name_of(results, cell['net'])}",
            "step",
            "layer",
            series,
            f"A row a layer, steps from left to right. {ends}.",
            colour="bits",
            note="One run.",
        )

    return figure


def _first(results: Results, place: int, method: str, levels: str) -> Result | None:
    if place >= len(results.values("net")):
        return None
    return next(iter(runs(results, results.values("net")[place], method, levels)), None)


def over_time(place: int, method: str, levels: str) -> Draw:
    """Draw loss, gradient norm, curvature where it was measured, and mean precision over the steps of one run."""

    def figure(results: Results) -> Figure | None:
        cell = _first(results, place, method, levels)
        if cell is None:
            return None
        steps = tuple(float(row["step"]) for row in cell.rows)
        names = ("loss", "gradient_norm", "largest_curvature", "bits")
        series = tuple(
            Series(name.replace("_", " "), steps, tuple(row[name] for row in cell.rows))
            for name in names
            if any(row[name] is not None for row in cell.rows)
        )
        bits = [row["bits"] for row in cell.rows]
        return Figure(
            f"over-time-{method}-{place + 1}",
            "lines",
            f"What precision follows over training, {label(method, levels)}: {name_of(results, cell['net'])}",
            "step",
            "each in its own unit",
            series,
            f"Lines over the steps of one run; mean precision goes from {bits[0]:.1f} to {bits[-1]:.1f} bits.",
            log_y=True,
            note="Loss in nats, norm of the gradient, largest curvature of a layer, mean forward bits. One run.",
        )

    return figure


def histogram(results: Results) -> Figure:
    """Draw the loss at step 1,000, or the last, of every run of uniform precision and of schedules."""
    series = []
    for method, levels, rounding in HISTOGRAM:
        x, y = [], []
        for net in results.values("net"):
            for cell in runs(results, net, method, levels, rounding):
                x.append(net)
                y.append(cell["loss_at_histogram"])
        if x:
            name = f"{method}{', nearest' if rounding == 'nearest' else ''}"
            series.append(Series(name, tuple(x), tuple(y)))
    bad = sum(value is None for each in series for value in each.y)
    words = "; ".join(f"{each.name} {_range(each)}" for each in series)
    return Figure(
        "loss-at-1000",
        "scatter",
        "Loss at step 1,000, or the last",
        "net",
        "cross-entropy of the minibatch, nats",
        tuple(series),
        f"A point a run. {words}. {bad} losses are not finite.",
        log_y=True,
        note=f"{bad} runs had no finite loss there." if bad else "All losses are finite.",
    )


def _range(series: Series) -> str:
    known = [value for value in series.y if value is not None]
    return f"{min(known):.2g} to {max(known):.2g}" if known else "none finite"


def curvature(results: Results) -> Figure:
    """Scatter the curvature of a layer at the end of a run against its bits there."""
    series = []
    for method, levels in (*NUMGEOM, ("combined", "fine")):
        points = []
        for net in results.values("net"):
            for cell in runs(results, net, method, levels):
                ends = [bits[-1] for bits in cell["schedule"]]
                for layer, kappa, bits in zip(cell["layers"], cell["curvatures"], ends, strict=True):
                    if kappa:
                        points.append((kappa, float(bits), f"{net} {layer}"))
        if points:
            x, y, notes = zip(*points, strict=True)
            series.append(Series(label(method, levels), x, y, (), notes))
    return Figure(
        "curvature-and-bits",
        "scatter",
        "Curvature of a layer and the bits that it gets at the end of training",
        "curvature of the loss in the layer's weights",
        "forward bits",
        tuple(series),
        "A point a layer and run. " + "; ".join(f"{each.name}: {len(each.x)}" for each in series) + ".",
        log_x=True,
    )


FIGURES: tuple[Draw, ...] = (
    *(frontier(place) for place in range(PLACES)),
    *(schedule(place, *row) for place in range(PLACES) for row in SHOWN),
    *(over_time(place, *row) for place in range(PLACES) for row in SHOWN),
    histogram,
    curvature,
)


def method_table(results: Results) -> Table:
    """List every method on every net: accuracy, cost, failures, and the variance of the loss over seeds."""
    rows: list[tuple[Value, ...]] = []
    for (net, method, levels, rounding), cells in results.by("net", "method", "levels", "rounding"):
        for text in dict.fromkeys(str(cell.configuration["options"] or "") for cell in cells):
            mine = _with_options(cells, text)
            accuracy, bits = mine.summary("accuracy"), mine.summary("average_bits")
            losses = [cell["loss_at_histogram"] for cell in mine if cell["loss_at_histogram"] is not None]
            variance = f"{statistics.variance(losses):.3g}" if len(losses) > 1 else ""
            failed = failures(results, net, method, levels, rounding) if not text else []
            rows.append(
                (
                    name_of(results, net),
                    f"{method}{' ' + text if text else ''}",
                    levels,
                    rounding,
                    str(accuracy or ""),
                    None if bits is None else round(bits.mean, 2),
                    *_of_float32(mine, runs(results, net, "float32")),
                    f"{sum(failed)} of {len(failed)}" if failed else "",
                    sum(int(cell["anomalies"]) for cell in mine),
                    variance,
                )
            )
    columns = (
        "net",
        "method",
        "levels",
        "gradients",
        "accuracy, %",
        "bits per operation",
        "bit-operations, % of float32",
        "by the product of bits, %",
        "failed",
        "NaN or Inf",
        "variance of loss",
    )
    return Table("methods", "Every method on every net", columns, tuple(rows))


def _of_float32(cells: Results, exact: Results) -> tuple[float | None, float | None]:
    if not len(exact):
        return None, None
    single, product = (round(100 - each, 2) for each in saved_percent(cells, exact))
    return single, product


def _with_options(cells: Results, text: str) -> Results:
    return cells.keep(lambda cell: str(cell.configuration["options"] or "") == text)


TABLES = (method_table,)
