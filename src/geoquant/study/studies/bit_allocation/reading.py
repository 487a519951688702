"""What the cells of the bit-allocation study say: size at equal accuracy, accuracy at equal size, and who is right."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from geoquant.findings import Claim
from geoquant.study.judging import Finding, judged, spread
from geoquant.study.results import Result, Results
from geoquant.study.studies.bit_allocation.cells import WRITTEN

SOURCE = "Curvature-Guided Bit Allocation"
UNIFORM = "uniform"
DROP = 0.5
"""Accuracy counts as equal within so many points of the float net."""
LEVELS = (4, 8, 16, 32)
"""The widths of the source's uniform baseline."""
ROBUST = 0.5
FOUR_LAYERS = "mlp4_fashion_mnist"

Rows = Sequence[Mapping[str, Any]]


def sweeps(results: Results, method: str, net: str | None = None) -> Results:
    """Keep the undisturbed curves of a method."""
    found = results.where(part="sweep", method=method, wrong_by=None)
    return found if net is None else found.where(net=net)


def nets(results: Results) -> tuple[str, ...]:
    """Return the nets that have curves."""
    return results.where(part="sweep").values("net")


def name_of(results: Results, net: str) -> str:
    """Return a net with its data, as a reader should see it."""
    return f"{net} on {results.where(net=net)[0]['data']}"


def smallest(rows: Rows, accuracy: float) -> int | None:
    """Return the least bytes at which a curve reaches an accuracy, None where it never does.

    >>> smallest([{"bytes": 9, "accuracy": 90.0}, {"bytes": 5, "accuracy": 80.0}], 85.0)
    9
    """
    return min((row["bytes"] for row in rows if row["accuracy"] >= accuracy), default=None)


def pairs(results: Results, method: str, net: str) -> Iterator[tuple[Result, Result]]:
    """Yield the curve of a method beside the uniform one of the same trained net."""
    others = {cell["seed"]: cell for cell in sweeps(results, UNIFORM, net)}
    for cell in sweeps(results, method, net):
        if cell["seed"] in others:
            yield cell, others[cell["seed"]]


def savings(results: Results, method: str, net: str, levels: Sequence[int] | None = None) -> list[float]:
    """Return, per seed, how many percent less memory the method takes for equal accuracy than uniform widths.

    Args:
        results: of the study.
        method: whose curves.
        net: on which net.
        levels: the widths that the uniform curve may use; all when None.
    """
    found = []
    for mine, uniform in pairs(results, method, net):
        target = mine["accuracy_float"] - DROP
        rows = [row for row in uniform.rows if levels is None or row["width"] in levels]
        own, other = smallest(mine.rows, target), smallest(rows, target)
        if own is not None and other is not None:
            found.append(100 * (1 - own / other))
    return found


def gains(results: Results, method: str, net: str) -> dict[float, list[float]]:
    """Return, for every width that both reach, the points of accuracy gained over uniform, per seed."""
    found: dict[float, list[float]] = {}
    for mine, uniform in pairs(results, method, net):
        known = {row["width"]: row["accuracy"] for row in uniform.rows}
        for row in mine.rows:
            if row["width"] in known:
                found.setdefault(row["width"], []).append(row["accuracy"] - known[row["width"]])
    return found


def memory(method: str) -> Callable[[Results], Claim]:
    """Judge the abstract's claim on memory for one method."""

    def claim(results: Results) -> Claim:
        findings = []
        for net in nets(results):
            found, coarse = savings(results, method, net), savings(results, method, net, LEVELS)
            if found:
                text = f"{name_of(results, net)}: {spread(found, ' %')}"
                text += f", {statistics.fmean(coarse):.0f} % against 4, 8, 16 and 32 bits alone" if coarse else ""
                text += f", both at {len(sweeps(results, UNIFORM, net)[0].rows)} sizes"
                findings.append(Finding(text, statistics.fmean(found) >= 15))
        text = f"15–25 % less memory than uniform widths at equal accuracy (within {DROP} points): {method}"
        return judged(text, SOURCE, results, findings)

    return claim


def accuracy(method: str) -> Callable[[Results], Claim]:
    """Judge the abstract's claim on accuracy for one method."""

    def claim(results: Results) -> Claim:
        findings = []
        for net in nets(results):
            found = {width: each for width, each in gains(results, method, net).items() if width >= LEVELS[0]}
            if found:
                best = max(found, key=lambda width: statistics.fmean(found[width]))
                text = f"{name_of(results, net)}: at most {spread(found[best], ' points')}, at {best:g} bits"
                findings.append(Finding(text, statistics.fmean(found[best]) >= 0.5))
        text = f"0.5–1.5 points more accuracy than uniform widths at equal size, from 4 bits up: {method}"
        return judged(text, SOURCE, results, findings)

    return claim


def dominates(results: Results) -> Claim:
    """Ask whether CAQ's curve lies nowhere below those of the baselines, and above them somewhere.

    Curves that are equal wherever both have a point dominate nothing.
    """
    findings = []
    rivals = ("uniform", "gradient norm", "Hessian diagonal", "random search")
    for net in nets(results):
        caq = _means(sweeps(results, WRITTEN, net))
        for rival in rivals:
            other = _means(sweeps(results, rival, net))
            leads = [caq[width] - other[width] for width in caq if width in other]
            if leads:
                ahead, behind = sum(lead > 0 for lead in leads), sum(lead < 0 for lead in leads)
                text = f"{name_of(results, net)}, {rival}: ahead at {ahead}, behind at {behind} of {len(leads)} sizes"
                findings.append(Finding(text, ahead > 0 and behind == 0))
    return judged("CAQ's curve of accuracy over size dominates the baselines", SOURCE, results, findings)


def _means(cells: Results) -> dict[float, float]:
    found: dict[float, list[float]] = {}
    for cell in cells:
        for row in cell.rows:
            found.setdefault(row["width"], []).append(row["accuracy"])
    return {width: statistics.fmean(each) for width, each in found.items()}


def bits_ratio(results: Results, method: str, net: str, width: float) -> list[float]:
    """Return, per seed, bits of the layer of the largest κ over bits of the layer of the least."""
    kappas = {cell["seed"]: cell["constants"] for cell in results.where(part="facts", net=net)}
    found = []
    for cell in sweeps(results, method, net):
        bits = dict(zip(cell["layers"], cell["bits"].get(f"{width:g}", ()), strict=False))
        known = sorted(kappas.get(cell["seed"], ()), key=lambda each: each["kappa"])
        if known and bits:
            found.append(bits[known[-1]["layer"]] / bits[known[0]["layer"]])
    return found


def curved_layers(results: Results) -> Claim:
    """Ask whether the layers of large κ need more bits, where bits are given by measured damage."""
    findings = []
    for net in nets(results):
        found, caq = bits_ratio(results, "geoquant", net, 4), bits_ratio(results, WRITTEN, net, 8)
        if found:
            text = f"{name_of(results, net)}: {spread(found)} times the bits at an average of 4"
            text += f", CAQ as written gives it {spread(caq)} times at 8" if caq else ""
            findings.append(Finding(text, statistics.fmean(found) >= 2))
    text = "The layer of the largest κ needs 2–4 times the bits of that of the least, by measured damage"
    return judged(text, SOURCE, results, findings)


def tight(results: Results) -> Claim:
    """Compare the composed error with what was seen, and with the bound that looks at no position."""
    findings = []
    for (net, _), cells in results.where(part="facts").by("net", "data"):
        for width in (4, 8):
            rows = [row for cell in cells for row in cell.rows if row["width"] == width]
            if rows:
                own, naive, sound = (
                    statistics.fmean(row[name] / row["observed"] for row in rows)
                    for name in ("written", "naive", "bound")
                )
                text = f"{name_of(results, net)} at {width} bits: {own:.1f}× the error seen, "
                text += f"{naive:.1f}× without positions, {sound:.0f}× for the bound that is proven"
                findings.append(Finding(text, own <= 10))
    return judged("The composed error is within 10 times of the observed one", SOURCE, results, findings)


def robust(results: Results) -> Claim:
    """Ask what an error of factor two in every κ does to the accuracy of CAQ's plans."""
    findings = []
    for net in nets(results):
        exact = {cell["seed"]: _by_width(cell) for cell in sweeps(results, WRITTEN, net)}
        wrong = results.where(part="sweep", method=WRITTEN, net=net).keep(lambda cell: "wrong_by" in cell.configuration)
        changes = [
            abs(value - exact[cell["seed"]][width])
            for cell in wrong
            if cell["seed"] in exact
            for width, value in _by_width(cell).items()
            if width in exact[cell["seed"]]
        ]
        if changes:
            mean, most = statistics.fmean(changes), max(changes)
            text = f"{name_of(results, net)}: {mean:.2f} points on average, {most:.2f} at most"
            findings.append(Finding(text, most <= ROBUST))
    text = f"Errors of up to a factor 2 in every κ cost CAQ no more than {ROBUST} points at any size"
    return judged(text, SOURCE, results, findings)


def _by_width(cell: Result) -> dict[float, float]:
    return {row["width"]: row["accuracy"] for row in cell.rows}


def overhead(results: Results) -> Claim:
    """Compare the time that κ takes with that of training the net."""
    findings = []
    for (net, _), cells in results.where(part="facts").by("net", "data"):
        shares = [100 * cell["seconds_curvature"] / cell["seconds_training"] for cell in cells]
        text = f"{name_of(results, net)}: {spread(shares, ' %')} of {cells[0]['seconds_training']:.0f} s"
        findings.append(Finding(text, statistics.fmean(shares) < 5))
    return judged("Estimating κ takes less than 5 % of the time of training", SOURCE, results, findings)


def within(metric: str, seconds: float, text: str) -> Callable[[Results], Claim]:
    """Judge a time of the 4-layer perceptron."""

    def claim(results: Results) -> Claim:
        cells = results.where(part="facts", net=FOUR_LAYERS)
        times = [cell[metric] for cell in cells]
        what = f"{name_of(results, FOUR_LAYERS)}: {spread(times, ' s')}" if times else ""
        return judged(text, SOURCE, results, [Finding(what, max(times) <= seconds)] if times else [])

    return claim


def solver(results: Results) -> Claim:
    """Judge the time of the source's solver, and say what the exact one takes."""
    findings = [
        Finding(
            f"{cell['layers']} layers: {cell['seconds_gradient']:.2f} s and {100 * cell['gap_gradient']:.0f} % above "
            f"the proven bound by projected gradient, {cell['seconds_exact']:.2f} s and "
            f"{100 * cell['gap_exact']:.1f} % exactly",
            cell["seconds_gradient"] < 1,
        )
        for cell in results.where(part="solver")
    ]
    return judged("The solver takes less than 1 s for networks of up to 50 layers", SOURCE, results, findings)


def layer_theorem(results: Results) -> Claim:
    """Hold the layer theorem to inputs that are rounded for real: its "at least" is an upper bound."""
    findings = []
    for (net, _), cells in results.where(part="facts").by("net", "data"):
        ratios = [each for cell in cells for each in cell["first_layer"]]
        low, high = min(each["least"] for each in ratios), max(each["largest"] for each in ratios)
        text = f"{name_of(results, net)}, first layer: errors are {low:.2f} to {high:.2f} times L‖x‖2⁻ᵖ + κ‖x‖²2⁻²ᵖ"
        findings.append(Finding(text, low >= 1))
    text = "A layer whose input has p bits of mantissa errs by at least L‖x‖2⁻ᵖ + κ‖x‖²2⁻²ᵖ"
    return judged(text, SOURCE, results, findings)


CLAIMS = (
    memory(WRITTEN),
    memory("CAQ sound"),
    memory("geoquant"),
    accuracy(WRITTEN),
    accuracy("CAQ sound"),
    accuracy("geoquant"),
    curved_layers,
    tight,
    robust,
    overhead,
    dominates,
    within("seconds_curvature", 3, "κ of a 4-layer perceptron takes about 3 s"),
    within("seconds_caq", 30, "CAQ takes about 30 s for a 4-layer perceptron"),
    solver,
    layer_theorem,
)
