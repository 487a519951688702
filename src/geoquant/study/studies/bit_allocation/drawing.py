"""The source's four figures and its metrics as tables, from the cells of the bit-allocation study."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from geoquant.findings import Figure, Series, Table, Value
from geoquant.study.results import Results, summary
from geoquant.study.studies.bit_allocation.cells import METHODS, WRITTEN
from geoquant.study.studies.bit_allocation.reading import UNIFORM, gains, name_of, nets, savings, sweeps

AVERAGE = 4
"""The width at which plans are shown layer by layer."""
HALF = 16
"""Half of the memory of float weights."""


def pareto(place: int) -> Callable[[Results], Figure | None]:
    """Draw accuracy over size for the net at a place of the list, None where there are fewer nets."""

    def figure(results: Results) -> Figure | None:
        if place >= len(nets(results)):
            return None
        net = nets(results)[place]
        curves = {method: sweeps(results, method, net) for method in METHODS}
        series = tuple(_curve(cells, method) for method, cells in curves.items() if cells)
        ends = ", ".join(f"{each.name} {each.y[0]:.1f} % at {each.x[0]:.2f} bits" for each in series if each.y)
        return Figure(
            f"accuracy-over-size-{place + 1}",
            "lines",
            f"Accuracy over size: {name_of(results, net)}",
            "average bits per weight, scales included",
            "accuracy on test images, %",
            series,
            f"{len(series)} lines of accuracy over average bits, one a method; their smallest plans: {ends}.",
            log_x=True,
            note="Means and deviations over trained nets.",
        )

    return figure


def _curve(cells: Results, method: str) -> Series:
    points: dict[float, list[tuple[float, float]]] = {}
    for cell in cells:
        for row in cell.rows:
            points.setdefault(row["width"], []).append((row["average_bits"], row["accuracy"]))
    found = [summary([accuracy for _, accuracy in each]) for each in points.values()]
    return Series(
        method,
        tuple(statistics.fmean(bits for bits, _ in each) for each in points.values()),
        tuple(each.mean for each in found if each is not None),
        tuple(each.deviation for each in found if each is not None),
        tuple(f"at the size of {width:g} bits, {len(each)} nets" for width, each in points.items()),
    )


def heatmap(results: Results) -> Figure | None:
    """Draw which layer got how many bits from which method, on the last net of the list."""
    if not nets(results):
        return None
    net = nets(results)[-1]
    series = []
    for method in METHODS:
        cells = sweeps(results, method, net)
        if cells and cells[0]["bits"].get(f"{AVERAGE}"):
            bits = tuple(float(each) for each in cells[0]["bits"][f"{AVERAGE}"])
            series.append(Series(method, tuple(cells[0]["layers"]), bits))
    rows = "; ".join(f"{each.name}: {' '.join(f'{bits:.0f}' for bits in each.y if bits)}" for each in series)
    return Figure(
        "bits-by-layer",
        "heatmap",
        f"Bits by layer at an average of {AVERAGE}: {name_of(results, net)}",
        "layer, from input to output",
        "method",
        tuple(series),
        f"A row a method, a column a layer. {rows}.",
        colour="bits",
        note=f"One trained net. {WRITTEN} is left out where its least widths allow no plan of this size.",
    )


def curvature_map(results: Results) -> Figure:
    """Draw κ of every layer beside the bits that it was given."""
    series, words = [], []
    for (net, _), cells in results.where(part="facts").by("net", "data"):
        constants = cells[0]["constants"]
        given = sweeps(results, "geoquant", net).where(seed=cells[0]["seed"])
        bits = dict(zip(given[0]["layers"], given[0]["bits"][f"{AVERAGE}"], strict=True)) if given else {}
        notes = tuple(f"{each['layer']}: {bits.get(each['layer'], '?')} bits" for each in constants)
        x = tuple(float(place) for place in range(1, len(constants) + 1))
        series.append(Series(name_of(results, net), x, tuple(each["kappa"] for each in constants), (), notes))
        words.append(f"{net} {', '.join(format(each['kappa'], '.2g') for each in constants)}")
    return Figure(
        "curvature-by-layer",
        "bars",
        "κ of every layer as the source estimates it",
        "place of the layer, from the input",
        "mean ‖Hv‖/‖v‖ of the Hessian of ‖f(x)‖²",
        tuple(series),
        f"Bars of κ over the layers, one colour a net. {'; '.join(words)}.",
        log_y=True,
        note=f"Hover: bits that each layer is given by measured damage at an average of {AVERAGE}.",
    )


def correlation(results: Results) -> Figure:
    """Scatter κ against the bits of two methods."""
    series = []
    for method, width in ((WRITTEN, "8"), ("geoquant", f"{AVERAGE}")):
        points = []
        for cell in sweeps(results, method):
            facts = results.where(part="facts", net=cell["net"], seed=cell["seed"])
            known = {each["layer"]: each["kappa"] for each in facts[0]["constants"]} if facts else {}
            for layer, bits in zip(cell["layers"], cell["bits"].get(width, ()), strict=False):
                if layer in known:
                    points.append((known[layer], float(bits), f"{cell['net']} {layer}"))
        x, y, notes = zip(*points, strict=True) if points else ((), (), ())
        series.append(Series(f"{method}, average {width}", x, y, (), notes))
    return Figure(
        "curvature-and-bits",
        "scatter",
        "κ of a layer and the bits that it gets",
        "κ as the source estimates it",
        "bits",
        tuple(series),
        "A point a layer. " + "; ".join(f"{each.name}: {len(each.x)} layers" for each in series) + ".",
        log_x=True,
    )


def waterfall(results: Results) -> Figure:
    """Stack what each layer adds to the output's first-order error."""
    cells = [(net, found[0]) for (net,), found in results.where(part="facts").by("net")]
    rows = [(net, next((row for row in cell.rows if row["width"] == AVERAGE), {})) for net, cell in cells]
    parts = [[value for key, value in row.items() if key.startswith("share of ")] for _, row in rows]
    names = tuple(net for net, _ in rows)
    depth = max((len(each) for each in parts), default=0)
    shares = [[value / sum(each) for value in each] + [None] * (depth - len(each)) for each in parts]
    series = tuple(Series(f"layer {at + 1}", names, tuple(each[at] for each in shares)) for at in range(depth))
    named = zip(names, parts, strict=True)
    worst = ", ".join(f"{net} layer {1 + each.index(max(each))}" for net, each in named if each)
    return Figure(
        "error-by-layer",
        "stacked",
        f"Where the output's error comes from, all layers at {AVERAGE} bits",
        "net",
        "share of the sum of first-order errors",
        series,
        f"A stacked bar a net, one part a layer. The largest part: {worst}.",
    )


FIGURES = (*(pareto(place) for place in range(5)), heatmap, curvature_map, correlation, waterfall)


def memory_table(results: Results) -> Table:
    """List the memory that each method saves at equal accuracy."""
    rows: list[tuple[Value, ...]] = []
    for net in nets(results):
        for method in METHODS:
            if method != UNIFORM and sweeps(results, method, net):
                found = summary(savings(results, method, net))
                half = gains(results, method, net).get(HALF, [])
                middle = gains(results, method, net).get(AVERAGE, [])
                low = gains(results, method, net).get(3, [])
                rows.append((name_of(results, net), method, str(found or ""), *(_mean(e) for e in (low, middle, half))))
    columns = (
        "net",
        "method",
        "% less memory at equal accuracy",
        "points gained at 3 bits",
        "at 4 bits",
        "at half the memory of float",
    )
    return Table("savings", "Each method against uniform widths rounded to nearest", columns, tuple(rows))


def _mean(values: list[float]) -> float | None:
    return round(statistics.fmean(values), 2) if values else None


TABLES = (memory_table,)
