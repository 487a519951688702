"""What the cells of the transformer-quantization study say about the document's tables, tests and claims."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from geoquant.findings import Claim, Figure, Series, Table, Value
from geoquant.study.judging import Finding, judged, spread
from geoquant.study.layers import rank_correlation, thirds
from geoquant.study.results import Results, summary
from geoquant.study.studies.transformer_quantization.cells import AVERAGE, GUIDED, OURS, UNIFORM, WIDTHS

SOURCE = "Curvature-Guided Transformer Quantization"
SECONDS = {"calibration": 10, "curvature": 5, "optimisation": 1, "quantization": 1, "total": 20}
"""What the document says that its steps take for ten million weights."""
BATCHES = 100
ATTENTION = ("q", "k", "v", "out")
FEED_FORWARD = "feed-forward"

Row = Mapping[str, Any]


def gained(results: Results, bits: int, method: str) -> dict[str, list[float]]:
    """Return, per net and seed, the points of accuracy that a method gains over the uniform grid of the same size."""
    found: dict[str, list[float]] = {}
    for (net, data), cells in results.where(part="mnist").by("net", "data"):
        for cell in cells:
            known = {(row["bits"], row["method"]): row["accuracy"] for row in cell.rows}
            found.setdefault(f"{net} on {data}", []).append(known[bits, method] - known[bits, UNIFORM])
    return found


def better(bits: int, points: float) -> Callable[[Results], Claim]:
    """Judge what guided allocation gains over uniform at an average width."""

    def claim(results: Results) -> Claim:
        findings = []
        for net, found in gained(results, bits, GUIDED).items():
            ours = statistics.fmean(gained(results, bits, OURS)[net])
            text = f"{net}: {spread(found, ' points')}, {ours:+z.1f} by measured damage, solved exactly"
            findings.append(Finding(text, statistics.fmean(found) >= points))
        text = f"At {bits} bits, guided allocation is {points:g} points more accurate than uniform"
        return judged(text, SOURCE, results, findings)

    return claim


def fewer_bits(results: Results) -> Claim:
    """Ask whether guided allocation keeps the accuracy of the float net with fewer bits than uniform."""
    findings = []
    for (net, data), cells in results.where(part="mnist").by("net", "data"):
        least = {
            method: [_least(cell.rows, method, cell["accuracy_float"]) for cell in cells]
            for method in (UNIFORM, GUIDED)
        }
        uniform, guided = (statistics.fmean(least[method]) for method in (UNIFORM, GUIDED))
        text = f"{net} on {data}: within half a point of float from {guided:.1f} bits, uniform from {uniform:.1f}"
        findings.append(Finding(text, guided < uniform))
    return judged("Guided allocation maintains accuracy with fewer bits than uniform", SOURCE, results, findings)


def _least(rows: Sequence[Row], method: str, exact: float) -> int:
    """Return the least width at which a method is within half a point of the float net; 9 where none is."""
    return min((row["bits"] for row in rows if row["method"] == method and row["accuracy"] >= exact - 0.5), default=9)


def timed(step: str) -> Callable[[Results], Claim]:
    """Judge one line of the document's table of times."""

    def claim(results: Results) -> Claim:
        findings = []
        for cell in results.where(part="times", batches=BATCHES):
            seconds = cell[f"seconds_{step}"]
            text = f"{cell['weights'] / 1e6:.1f} million weights: {seconds:.1f} s ({BATCHES} batches of one image of "
            findings.append(Finding(f"{text}{cell['pixels']}×{cell['pixels']} pixels)", seconds <= SECONDS[step]))
        text = f"{step.capitalize()} takes about {SECONDS[step]} s or less for ten million weights"
        return judged(text, SOURCE, results, findings)

    return claim


def depth(results: Results) -> Claim:
    """Compare early with late layers of the trained residual net."""
    findings = []
    for cell in results.where(part="resnet"):
        early, middle, late = thirds(cell.rows, "bits_exact")
        kappa = thirds([{"kappa": row["condition_number"] or 0.0} for row in cell.rows], "kappa")
        text = (
            f"{cell['net']} on {cell['data']}: {early:.1f}, {middle:.1f} and {late:.1f} bits by measured damage in the "
        )
        text += f"first, middle and last third, condition numbers {kappa[0]:.0f}, {kappa[1]:.0f} and {kappa[2]:.0f}"
        findings.append(Finding(text, late > early + 0.25))
    return judged("In a residual net early layers need fewer bits, later layers more", SOURCE, results, findings)


def condition_predicts(results: Results) -> Claim:
    """Ask whether the condition number, which the document calls curvature, ranks layers by the damage of rounding."""
    findings = []
    for cell in results.where(part=("resnet", "transformer")):
        known = [row for row in cell.rows if row["condition_number"] is not None]
        kappa = [row["condition_number"] for row in known]
        damage = rank_correlation(kappa, [row["kl_3"] / row["weights"] for row in known])
        if damage is not None:
            text = f"{cell['net']} on {cell['data']}: rank correlation {damage:+z.2f} with the damage per weight"
            findings.append(Finding(text, damage >= 0.5))
    return judged("A layer's condition number ranks what rounding it costs", SOURCE, results, findings)


def attention_curved(results: Results) -> Claim:
    """Compare attention's projections with the feed-forward ones, by the document's measure and by damage."""
    findings = []
    for cell in results.where(part="transformer"):
        parts = components(cell.rows)
        if FEED_FORWARD in parts:
            for name, words in (("condition_number", "condition number"), ("trace_per_weight", "trace per weight")):
                attention = statistics.fmean(parts[kind][name] for kind in ATTENTION if kind in parts)
                other = parts[FEED_FORWARD][name]
                text = f"{cell['net']}, {words}: {attention:.3g} in attention, {other:.3g} in the feed-forward part"
                findings.append(Finding(text, attention > other))
    return judged("Attention has higher curvature than the feed-forward part", SOURCE, results, findings)


def attention_needs(results: Results) -> Claim:
    """Round all of attention, then all of the feed-forward part, to three bits."""
    findings = []
    for cell in results.where(part="transformer"):
        per_weight = [cell[f"kl_{name}"] / cell[f"weights_{name}"] for name in ("attention", "feed_forward")]
        text = f"{cell['net']}, 3 bits: {cell['kl_attention']:.3g} nats for attention, {cell['kl_feed_forward']:.3g} "
        text += f"for the feed-forward part, {per_weight[0] / per_weight[1]:.2f} times as much per weight"
        findings.append(Finding(text, per_weight[0] > per_weight[1]))
    text = "Attention needs high precision, the feed-forward part can be quantized aggressively"
    return judged(text, SOURCE, results, findings)


def components(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Return, for each kind of layer, medians of its measures and the mean of its bits."""
    found: dict[str, dict[str, float]] = {}
    for part in dict.fromkeys(row["part"] for row in rows):
        mine = [row for row in rows if row["part"] == part]
        names = ("condition_number", "spectral_norm", "trace_per_weight", "bits_alone", "bits_exact", "bits_guided")
        values = {name: [row[name] for row in mine if row[name] is not None] for name in names}
        found[part] = {name: statistics.median(each) for name, each in values.items() if each}
        found[part] |= {name: statistics.fmean(row[name] for row in mine) for name in ("bits_exact", "bits_guided")}
    return found


def recommended(results: Results) -> Claim:
    """Hold the document's recommended bits to those of the exact plan at six on average."""
    wanted = {"q": (8, 10), "k": (8, 10), "v": (6, 8), "out": (8, 8), FEED_FORWARD: (4, 6)}
    findings = []
    for cell in results.where(part="transformer"):
        parts = components(cell.rows)
        for kind, (low, high) in wanted.items():
            if kind in parts:
                bits = parts[kind]["bits_exact"]
                text = f"{kind} {bits:.1f} bits, {low}–{high} recommended"
                findings.append(Finding(text, low - 0.5 <= bits <= high + 0.5))
    text = f"Queries and keys need 8–10 bits, values 6–8, outputs 8, feed-forward 4–6 (at {AVERAGE} on average)"
    return judged(text, SOURCE, results, findings)


def no_algorithm(results: Results) -> Claim:
    """Show a code with fewer bits than the document's bound that reaches the accuracy."""
    findings = []
    for cell in results.where(part="oracles"):
        text = f"½·8·x² on [−1, 1] with an error of {cell['tolerance']:g}: {cell['outputs']} outputs, "
        text += f"{cell['bits_of_outputs']:.2f} bits, err by {cell['error_of_outputs']:.6f}, one fewer by "
        text += f"{cell['error_of_one_fewer']:.6f}, the document asks for {cell['bits_of_document']:.2f} bits"
        findings.append(Finding(text, cell["bits_of_outputs"] >= cell["bits_of_document"]))
    return judged("No algorithm can do better with fewer bits than log₂(κD²/ε)", SOURCE, results, findings)


def example_bits(results: Results) -> Claim:
    """Compute the document's example."""
    findings = [
        Finding(f"log₂(100·2²/10⁻⁶) = {cell['bits_of_its_example']:.1f}", abs(cell["bits_of_its_example"] - 27) <= 1)
        for cell in results.where(part="oracles")
    ]
    return judged("For κ = 100, D = 2, ε = 10⁻⁶ it takes about 27 bits", SOURCE, results, findings)


def composed(results: Results) -> Claim:
    """Hold the composition of errors to a chain by hand and to random chains."""
    findings = []
    for cell in results.where(part="oracles"):
        exact = abs(cell["composed"] - cell["by_hand"]) < 1e-9
        text = f"three layers: {cell['composed']:.2f}, by hand {cell['by_hand']:.2f}, the law as printed counts twice, "
        findings.append(Finding(f"{text}{cell['counted_twice']:.2f}", exact))
        seen = cell["largest_seen_over_bound"]
        findings.append(Finding(f"200 random chains err by at most {seen:.2f} times the bound", seen <= 1))
    return judged("Errors compose as Σᵢ (∏_{j>i} Lⱼ)·Φᵢ, in its sound form", SOURCE, results, findings)


def softmax(results: Results) -> Claim:
    """Shift the inputs of softmax, which it does not notice."""
    findings = []
    for cell in results.where(part="oracles"):
        known, shifted = cell["softmax_curvature"], cell["softmax_curvature_shifted"]
        text = f"κ sampled {known:.4f}, all inputs shifted by 10: {shifted:.4f}, e^(2 max x) says "
        findings.append(Finding(f"{text}{cell['softmax_document_shifted']:.2g}", shifted > 10 * known))
    return judged("The curvature of softmax is about e^(2 max x)", SOURCE, results, findings)


def strategies(results: Results) -> Claim:
    """Compare the document's strategies with the exact solution of its own problem."""
    findings = []
    for cell in results.where(part="oracles"):
        for name in ("proportional", "gradient", "greedy"):
            ratio = cell[f"{name}_over_exact"]
            findings.append(Finding(f"{name}: at worst {ratio:.3g} times the least error", ratio <= 1.05))
    return judged("Its strategies minimise Σ κ·2^(−b) under the budget (to 5 %)", SOURCE, results, findings)


CLAIMS = (
    better(8, 0.2),
    better(6, 1.2),
    fewer_bits,
    depth,
    condition_predicts,
    attention_curved,
    attention_needs,
    recommended,
    *(timed(step) for step in SECONDS),
    no_algorithm,
    example_bits,
    composed,
    softmax,
    strategies,
)


def accuracies(results: Results) -> Figure:
    """Draw accuracy over average bits for guided and uniform allocation."""
    cells = results.where(part="mnist")
    series = []
    for method in dict.fromkeys(row["method"] for cell in cells for row in cell.rows):
        found = [summary(_of(cells, method, bits)) for bits in WIDTHS]
        known = [(float(bits), each) for bits, each in zip(WIDTHS, found, strict=True) if each is not None]
        series.append(
            Series(
                method,
                tuple(bits for bits, _ in known),
                tuple(each.mean for _, each in known),
                tuple(each.deviation for _, each in known),
            )
        )
    words = "; ".join(f"{each.name} {each.y[1]:.1f} % at {each.x[1]:g} bits" for each in series if len(each.y) > 1)
    return Figure(
        "accuracy-over-bits",
        "lines",
        "Guided and uniform allocation on MNIST",
        "bits of the uniform grid of the same size",
        "accuracy on test images, %",
        tuple(series),
        f"Lines of accuracy over bits, one a method. {words}.",
        note="Means and deviations over trained nets.",
    )


def _of(cells: Results, method: str, bits: int) -> list[float]:
    rows = [row for cell in cells for row in cell.rows]
    return [row["accuracy"] for row in rows if (row["method"], row["bits"]) == (method, bits)]


def layers(part: str) -> Callable[[Results], Figure | None]:
    """Draw the bits of every layer of a trained net, by condition number and by measured damage."""

    def figure(results: Results) -> Figure | None:
        cell = next(iter(results.where(part=part)), None)
        if cell is None:
            return None
        names = tuple(str(row["layer"]) for row in cell.rows)
        notes = tuple(f"condition number {row['condition_number'] or float('inf'):.3g}" for row in cell.rows)
        columns = {"by condition number, proportional": "bits_guided", "by measured damage, exact": "bits_exact"}
        series = tuple(
            Series(name, names, tuple(float(row[key]) for row in cell.rows), (), notes) for name, key in columns.items()
        )
        ends = "; ".join(f"{each.name} {each.y[0]} and {each.y[-1]}" for each in series)
        return Figure(
            f"layers-{part}",
            "bars",
            f"Bits of every layer at an average of {AVERAGE}: {cell['net']} on {cell['data']}",
            "layer, from input to output",
            "bits",
            series,
            f"Two bars a layer, {len(names)} layers. Bits of the first and the last: {ends}.",
        )

    return figure


FIGURES = (accuracies, layers("resnet"), layers("transformer"))


def accuracy_table(results: Results) -> Table:
    """List the document's rows: configuration, average bits, accuracy, loss from float."""
    rows: list[tuple[Value, ...]] = []
    for (net, data), cells in results.where(part="mnist").by("net", "data"):
        exact = cells.summary("accuracy_float")
        assert exact is not None  # every finished cell has it
        rows.append((f"{net} on {data}", "float", 32.0, str(exact), 0.0))
        for bits in WIDTHS:
            for method in dict.fromkeys(row["method"] for row in cells[0].rows):
                found = summary(_of(cells, method, bits))
                if found is not None:
                    lost = round(exact.mean - found.mean, 2)
                    rows.append((f"{net} on {data}", method, float(bits), str(found), lost))
    columns = ("net", "configuration", "bits on average", "accuracy, %", "points below float")
    return Table("accuracy", "Guided and uniform allocation at equal size", columns, tuple(rows))


def time_table(results: Results) -> Table:
    """List the document's table of times beside what was measured."""
    rows: list[tuple[Value, ...]] = []
    for cell in results.where(part="times"):
        for step, said in SECONDS.items():
            rows.append((step, f"{said} s", round(cell[f"seconds_{step}"], 2)))
    columns = ("step", "document, ten million weights", "measured, processor seconds")
    note = "ResNet-18 with random weights; one image a batch."
    return Table("times", "Times of the whole path", columns, tuple(rows), note)


def component_table(results: Results) -> Table:
    """List measures and bits by kind of layer of the trained Transformer and by stage of the residual net."""
    rows: list[tuple[Value, ...]] = []
    for cell in results.where(part=("resnet", "transformer")):
        for part, found in components(cell.rows).items():
            measures = [found.get(name) for name in ("condition_number", "spectral_norm", "trace_per_weight")]
            shown = [None if value is None else float(f"{value:.3g}") for value in measures]
            bits = [round(found[name], 1) for name in ("bits_guided", "bits_exact", "bits_alone")]
            rows.append((cell["net"], part, *shown, *bits))
    columns = ("net", "part", "condition number", "spectral norm", "Gauss–Newton trace per weight")
    more = ("bits by condition number", "bits by measured damage", "bits that suffice alone")
    note = "Medians over the layers of a part; means of the bits of plans."
    return Table("components", f"Parts of trained nets, plans of {AVERAGE} bits", (*columns, *more), tuple(rows), note)


TABLES = (accuracy_table, time_table, component_table)
