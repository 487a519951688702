"""What the cells of the low-loss-basin study say about its four predictions, the theory's toy, and the diagnosis."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence

from geoquant.findings import Claim
from geoquant.study.judging import Finding, judged
from geoquant.study.results import Result, Results
from geoquant.study.studies.low_loss_basin.cells import TOLERANCE

SOURCE = "Gradients at Quantized Weights Bias to the Low-Loss Basin"
FINE, COARSE = ("int8", "int6"), ("int2", "ternary", "binary")
TRACED = ("int2", "ternary")
LINES = {
    "nearest": "rounded to nearest",
    "gptq": "GPTQ, norms corrected",
    "float_further_nearest": "float trained on, then rounded",
    "trained": "trained on the grid",
}


def grids(results: Results) -> Results:
    """Keep the cells of nets on grids."""
    return results.where(part="grid")


def rise(cell: Result, name: str) -> float:
    """Return how far a loss lies above that of the float net, in nats."""
    return float(cell[name] - cell["float"])


def _place(cell: Result) -> str:
    return f"{cell['net']} on {cell['data']}, {cell['grid']}"


def gap(cell: Result) -> float:
    """Return what training on the grid gains over rounding, with or without as much float training first, in nats."""
    return float(min(cell["nearest"], cell["float_further_nearest"]) - cell["trained"])


def gap_vanishes(results: Results) -> Claim:
    """Ask whether rounding and training on the grid give the same on fine grids, and not on coarse ones."""
    findings = []
    for (net, data), cells in grids(results).by("net", "data"):
        fine, coarse = ([gap(cell) for cell in cells.where(grid=names)] for names in (FINE, COARSE))
        if fine and coarse:
            text = f"{net} on {data}: gap {statistics.fmean(coarse):.3g} nats on coarse grids, "
            text += f"{statistics.fmean(fine):.2g} on 6 and 8 bits"
            holds = statistics.fmean(coarse) > TOLERANCE and abs(statistics.fmean(fine)) <= TOLERANCE
            findings.append(Finding(text, holds))
    text = "The gap between rounding and training on the grid is large on coarse grids and vanishes on fine ones"
    return judged(text, SOURCE, results, findings)


def rounding_fails(results: Results) -> Claim:
    """Ask whether rounding on coarse grids leaves the basin, and second-order reconstruction too."""
    findings = [
        Finding(
            f"{_place(cell)}: {rise(cell, 'nearest'):.3g} nats rounded, {rise(cell, 'gptq'):.3g} by GPTQ",
            rise(cell, "nearest") > TOLERANCE and rise(cell, "gptq") > TOLERANCE,
        )
        for cell in grids(results).where(grid=COARSE)
    ]
    text = f"On 2 bits and fewer, rounding and second-order reconstruction leave the basin (over {TOLERANCE} nats)"
    return judged(text, SOURCE, results, findings)


def recovers(results: Results) -> Claim:
    """Ask whether training on the grid brings back most of what rounding lost."""
    findings = []
    for cell in grids(results).where(grid=COARSE):
        lost, left = rise(cell, "nearest"), rise(cell, "trained")
        if lost > TOLERANCE:
            share = 100 * (1 - left / lost)
            findings.append(Finding(f"{_place(cell)}: {share:.0f} % of {lost:.3g} nats brought back", share >= 50))
    text = "Where rounding fails, training with gradients at the quantized weights brings most of the loss back"
    return judged(text, SOURCE, results, findings)


def control_fails(results: Results) -> Claim:
    """Ask whether float training with the same budget and then rounding gives less than training on the grid."""
    findings = []
    for cell in grids(results).where(grid=COARSE):
        own, other = rise(cell, "trained"), rise(cell, "float_further_nearest")
        text = f"{_place(cell)}: {other:.3g} nats after float training and rounding, {own:.3g} trained on the grid"
        findings.append(Finding(text, own < other))
    text = "Float training with the same budget, then rounding, does not give the gain of training on the grid"
    return judged(text, SOURCE, results, findings)


def deployed_falls(results: Results) -> Claim:
    """Ask whether f(Q(w)) falls in training while f(w) need not."""
    findings = []
    for cell in grids(results).where(grid=TRACED):
        if len(cell.rows) > 1:
            first, last = cell.rows[0], cell.rows[-1]
            falls = _share_falling([row["deployed"] for row in cell.rows])
            text = f"{_place(cell)}: f(Q(w)) {last['deployed'] - first['deployed']:+.3g} nats, f(w) "
            text += f"{last['latent'] - first['latent']:+.3g}, f(Q(w)) fell at {100 * falls:.0f} % of the looks"
            findings.append(Finding(text, last["deployed"] < first["deployed"]))
    return judged("In training the deployed loss f(Q(w)) falls, though f(w) need not", SOURCE, results, findings)


def _share_falling(values: Sequence[float]) -> float:
    pairs = list(itertools.pairwise(values))
    return sum(after < before for before, after in pairs) / len(pairs)


def inward(results: Results) -> Claim:
    """Ask whether the first steps of training lead towards the float weights."""
    findings = []
    for cell in grids(results).where(grid=TRACED):
        if cell.rows:
            first = cell.rows[0]["inward"]
            findings.append(Finding(f"{_place(cell)}: cosine {first:+.3f} at the first step", first > 0))
    text = "The gradient at the quantized weights has a component that leads back towards the float weights"
    return judged(text, SOURCE, results, findings)


def theory(results: Results) -> Claim:
    """Hold the lemma of the straight river to its toy, where every step is exact."""
    findings = []
    for cell in results.where(part="toy"):
        text = f"rounding picks loss {cell['rounded_loss']:g} though {cell['other_codeword_loss']:g} is near, second "
        text += f"order sees {cell['second_order_sees']:g}, training enters at step {cell['entry']}, "
        text += f"within the bound of {cell['entry_bound']}"
        kept = cell["entry"] is not None and cell["entry"] <= cell["entry_bound"]
        findings.append(Finding(text, kept and cell["stays"] and cell["rounded_loss"] > cell["other_codeword_loss"]))
        controls = cell["float_entry"], cell["entry_without_codeword_inside"]
        words = ["never" if each is None else f"at step {each}" for each in controls]
        text = f"float training enters {words[0]}, training with no codeword inside {words[1]}"
        findings.append(Finding(text, controls == (None, None)))
        share, wanted = cell["share_on_upper_codeword"], cell["expected_share"]
        text = f"between two codewords {100 * share:.1f} % of the steps are on the upper, {100 * wanted:.0f} % expected"
        findings.append(Finding(text, abs(share - wanted) < 0.01))
    text = (
        "Straight-through training enters the basin in finite time where a compatible codeword exists, and only there"
    )
    return judged(text, SOURCE, results, findings)


def happened(cell: Result) -> str:
    """Return the first remedy after which the loss rises by no more than the tolerance."""
    tried = (("ptq", "nearest"), ("better-rounding", "descent"), ("qat", "trained"))
    return next((word for word, name in tried if rise(cell, name) <= TOLERANCE), "infeasible")


def diagnosed(results: Results) -> Claim:
    """Compare the diagnosis, made before anything was quantized, with what happened."""
    findings = []
    for (net, data), cells in grids(results).by("net", "data"):
        known = cells.keep(lambda cell: "predicted" in cell.metrics)
        right = [cell["predicted"] == happened(cell) for cell in known]
        wrong = [f"{c['grid']} {c['predicted']}, not {happened(c)}" for c in known if c["predicted"] != happened(c)]
        if right:
            text = f"{net} on {data}: {sum(right)} of {len(right)} verdicts right"
            findings.append(Finding(text + (f" ({', '.join(wrong)})" if wrong else ""), sum(right) >= 0.8 * len(right)))
    text = "Basin and grid, measured beforehand, say what helps: rounding, better rounding, training, or nothing"
    return judged(text, SOURCE, results, findings)


CLAIMS = (gap_vanishes, rounding_fails, recovers, control_fails, deployed_falls, inward, diagnosed, theory)
