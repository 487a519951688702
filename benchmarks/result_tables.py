"""Tables of docs/results.md, each made from one committed result."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

Document = dict[str, Any]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table.

    >>> print(markdown(["a", "b"], [["1", "2"]]))
    | a | b |
    |-|-|
    | 1 | 2 |
    """
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return "\n".join([lines[0], "|-|" + "-|" * (len(head) - 1), *lines[1:]])


def uniform(document: Document) -> str:
    """Every uniform grid of the round-to-nearest run, by width."""
    rows = [row for row in document["rows"] if row["method"].startswith("uniform")]
    labels = list(dict.fromkeys(row["label"] for row in rows))
    found = {(row["method"], row["label"]): row for row in rows}
    methods = list(dict.fromkeys(row["method"] for row in rows))
    body = [[name, *(f"{found[(name, label)]['accuracy']:.1f}" for label in labels)] for name in methods]
    return markdown(["uniform grid", *labels], body)


def solvers(document: Document) -> str:
    """Every predictor with every solver, and the exact solver on other grids, by budget."""
    rows = [row for row in document["rows"] if " + " in row["method"]]
    labels = list(dict.fromkeys(row["label"] for row in rows))
    found = {(row["method"], row["label"]): row for row in rows}

    def cell(name: str, label: str) -> str:
        row = found.get((name, label))
        if row is None:
            return ""
        return f"{row['accuracy']:.1f}" + (f" ± {row['spread']:.1f}" if row["seeds"] > 1 else "")

    methods = list(dict.fromkeys(row["method"] for row in rows))
    return markdown(
        ["predictor + solver, grid", *labels], [[name, *(cell(name, label) for label in labels)] for name in methods]
    )


def whole_path(document: Document) -> str:
    """Seconds of each step, the median run and all of them."""
    medians, runs = document["medians"], document["runs"]
    totals = sorted(sum(value for key, value in run.items() if key != "peak_mb") for run in runs)
    steps = [key for key in medians if key not in ("peak_mb", "total_seconds")]
    table = markdown(
        [*(f"{key}, s" for key in steps), "total, s", "peak memory, MB"],
        [[*(f"{medians[key]:.2f}" for key in steps), f"{medians['total_seconds']:.1f}", f"{medians['peak_mb']:.0f}"]],
    )
    return f"{table}\n\nMedians of {len(runs)} runs; totals from {totals[0]:.1f} to {totals[-1]:.1f} s."


def allocation(document: Document) -> str:
    """Seconds and proven gap of every solver at the largest common size."""
    rows = [row for row in document["rows"] if row["sites"] == 1000]
    body = [
        [row["solver"], row["damages"], str(row["budgets"]), f"{row['seconds']:.3f}", f"{row['gap']:.1e}"]
        for row in rows
    ]
    return markdown(["solver", "damages", "budgets", "seconds", "gap to the proven bound"], body)


def packing(document: Document) -> str:
    """Speed of packing by grid."""
    steps = ("encode", "pack", "unpack", "decode", "save", "load")
    body = [
        [f"`{row['grid']}`", f"{row['compression']:.2f}×", *(f"{row['mb_per_s'][s]['median']:,.0f}" for s in steps)]
        for row in document["rows"]
    ]
    return markdown(["grid", "smaller by", *steps], body)


def bounds(*documents: Document) -> str:
    """Gap of every bound by net and width."""
    body = []
    for result in (result for document in documents for result in document["results"]):
        points = f"{result['sampled_points']:,} + {result['attacked_points']:,}"
        for row in result["rows"]:
            exceeded = row["exceeded_by_found_points"]
            body.append(
                [
                    f"{result['net']}, {result['bits']} bits",
                    row["method"],
                    _number(row["median_gap"]),
                    _number(row["max_gap"]),
                    "–" if exceeded is None else str(exceeded),
                    points,
                ]
            )
    return markdown(
        ["net", "method", "median gap", "largest gap", "points above it", "points sampled + attacked"], body
    )


def transformed_weights(document: Document) -> str:
    """Loss of the Llama with rounded weights, by rounding and transforms."""
    rows = [row for row in document["rows"] if row["grid"].startswith("int")]
    seeds = max(row["seeds"] for row in rows)
    return (
        f"{_losses(rows)}\n\nFloat: {document['float']:.3f}. {document['tokens']:,} tokens, {seeds} calibration set(s)."
    )


def transformed_activations(document: Document) -> str:
    """Loss of the Llama with rounded weights and activations."""
    return _losses([row for row in document["rows"] if row["grid"].startswith("W")])


def _losses(rows: Sequence[Document]) -> str:
    grids = sorted({row["grid"] for row in rows}, reverse=True)
    keys = dict.fromkeys((row["rounding"], row["transforms"]) for row in rows)
    found = {(row["rounding"], row["transforms"], row["grid"]): f"{row['loss']:.3f}" for row in rows}
    ordered = sorted(keys, key=lambda key: key[0] != "nearest")
    body = [[*key, *(found.get((*key, grid), "") for grid in grids)] for key in ordered]
    return markdown(["rounding", "transform", *grids], body)


def transformed_resnet(document: Document) -> str:
    """Accuracy of the ResNet-20 at W4A4 without and with equalisation."""
    found = {(row["norms"], row["grid"], row["transforms"]): f"{row['accuracy']:.1f}" for row in document["rows"]}
    cases = dict.fromkeys((row["norms"], row["grid"]) for row in document["rows"])
    body = [
        [norms, f"`{grid}`", *(found.get((norms, grid, name), "") for name in ("none", "equalize"))]
        for norms, grid in cases
    ]
    table = markdown(["batch norms", "weights", "none", "`equalize`"], body)
    return f"{table}\n\nFloat: {document['float']:.1f} %. {document['rows'][0]['seeds']} calibration set(s)."


def _number(value: float | None) -> str:
    return "not covered" if value is None else f"{value:.3g}"


def geometry(document: Document) -> str:
    """Ways to the traces of all layers, and how they compare with a training step and with PyHessian."""
    parts, summary = document["parts"], document["summary"]
    body = [
        ["Gauss–Newton traces, exact", f"{parts['exact_traces']['seconds']:.1f} s", "0 (exact)", ""],
        ["Hessian traces of this ReLU net, exact", f"{parts['exact_traces']['seconds_hessian_traces']:.1f} s", "0", ""],
    ]
    for name, shown in (
        ("plain_probes", "Hutchinson, plain probes"),
        ("fresh_probes", "Hutchinson, fresh probes for each sample"),
        ("remainder_probes", "exact Gauss–Newton part + probes of the remainder"),
    ):
        part = parts[name]
        body.append(
            [
                f"{shown}, {part['probes']} probes",
                f"{part['seconds']:.1f} s",
                f"{100 * part['median_relative_stderr']:.1f} % (worst {100 * part['worst_relative_stderr']:.0f} %)",
                f"{part['median_probes_for_target']:,} (worst {part['worst_probes_for_target']:,})",
            ]
        )
    table = markdown(["traces of all layers", "time", "median standard error", "probes for 5 %"], body)
    lines = [
        f"- memory over that of one training step: exact traces {summary['memory_exact_over_step']:.2f}×, "
        f"probes {summary['memory_probe_over_step']:.2f}×",
        f"- the whole curvature map takes {100 * summary['curvature_map_in_training_epochs']:.0f} % of one epoch of "
        f"training, {100 * summary['curvature_map_share_of_100_epochs']:.2f} % of a hundred",
    ]
    if "speedup_per_probe" in summary:
        lines.append(
            f"- one probe of all layers is {summary['speedup_per_probe']:.1f}× as fast as PyHessian's loop over "
            f"batches, {summary['speedup_per_probe_graph_kept']:.1f}× as fast as PyHessian with one kept graph"
        )
    return f"{table}\n\n" + "\n".join(lines)


def architectures(document: Document) -> str:
    """Condition numbers and widths by kind of layer, and the time of each step."""
    texts = []
    for net, result in document.items():
        if net == "provenance" or "components" not in result:
            continue
        keys = list(result["components"][0])
        body = [[str(row[key]) for key in keys] for row in result["components"]]
        times = "; ".join(f"{step} {seconds:g} s" for step, seconds in result["seconds"].items())
        sizes = "; ".join(f"{plan} {size:,} bytes" for plan, size in result["bytes"].items())
        texts.append(f"**{net}**: {sizes}.\n\n{markdown([key.replace('_', ' ') for key in keys], body)}\n\n{times}.")
    return "\n\n".join(texts)


def roundings(document: Document) -> str:
    """Every rounding at every plan, with its time."""
    rows = [row for row in document["rows"] if row["method"] != "float"]
    labels = list(dict.fromkeys(row["label"] for row in rows))
    found = {(row["method"], row["label"]): row for row in rows}

    def cell(method: str, label: str) -> str:
        row = found.get((method, label))
        if row is None:
            return ""
        spread = f" ± {row['spread']:.1f}" if row["seeds"] > 1 else ""
        return f"{row['accuracy']:.1f}{spread} ({row['seconds']:.0f} s)"

    bits = {row["label"]: row["average_bits"] for row in rows}
    body = [
        [method, *(cell(method, label) for label in labels)] for method in dict.fromkeys(row["method"] for row in rows)
    ]
    seeds = max(row["seeds"] for row in rows)
    table = markdown(["rounding", *(f"{label} ({bits[label]:.2f})" for label in labels)], body)
    sets = "one calibration set" if seeds == 1 else f"{seeds} calibration sets"
    return f"{table}\n\nMeans over {sets}; in the head, in brackets: the plan's inclusive average bits."


def budgets(*documents: Document) -> str:
    """Each document's rounding at each budget, with and without 8-bit ends."""
    rows = [row for document in documents for row in document["rows"] if " bits" in row["label"]]
    found = {(row["method"], row["label"]): row for row in rows}
    sizes = list(dict.fromkeys(row["label"].split(", ends")[0] for row in rows))
    body = [
        [method + shown, *(_figure(found.get((method, size + suffix))) for size in sizes)]
        for method in dict.fromkeys(row["method"] for row in rows)
        for suffix, shown in (("", ""), (", ends at 8", ", first and last layer at 8 bits"))
    ]
    seconds = max(row["seconds"] for row in rows)
    seeds = max(row["seeds"] for row in rows)
    table = markdown(["rounding", *(size.removeprefix("weight_error, ") for size in sizes)], body)
    return (
        f"{table}\n\nMeans over {seeds} calibration sets; rounding took at most {seconds:.0f} s, one core, others busy."
    )


def _figure(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    return f"{row['accuracy']:.1f}" + (f" ± {row['spread']:.1f}" if row["seeds"] > 1 else "")


def predictors(document: Document) -> str:
    """Accuracy of every predictor's plan at each budget, and what the predictor cost."""
    rows = document["rows"]
    sizes = sorted({row["budget"] for row in rows}, reverse=True)
    body = []
    for name in dict.fromkeys(row["predictor"] for row in rows):
        mine = [row for row in rows if row["predictor"] == name]
        cells = []
        for size in sizes:
            values = [row["accuracy"] for row in mine if row["budget"] == size]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}" if values else "")
        cost = statistics.mean(row["forward_equivalents"] for row in mine)
        seconds = statistics.mean(row["seconds"] for row in mine)
        body.append([f"`{name}`", *cells, f"{cost:.0f}", f"{seconds:.0f}"])
    heads = ["predictor", *(f"{size:g} bits" for size in sizes), "forward-equivalents", "seconds"]
    seeds = len({row["seed"] for row in rows})
    return f"{markdown(heads, body)}\n\nMeans over {seeds} calibration set{'s' if seeds > 1 else ''}."


def ranks(document: Document) -> str:
    """Rank correlation of predicted and real damage, best first."""
    rows = document["rows"]
    sizes = sorted({row["average_bits"] for row in rows}, reverse=True)
    found = {(row["predictor"], row["average_bits"]): row for row in rows}

    def cell(row: dict[str, Any] | None) -> str:
        if row is None:
            return ""
        rank = row["spearman"]
        return f"{rank['value']:.2f} ({rank['low']:.2f} to {rank['high']:.2f})"

    names = sorted(
        dict.fromkeys(row["predictor"] for row in rows),
        key=lambda name: -statistics.mean(row["spearman"]["value"] for row in rows if row["predictor"] == name),
    )
    body = [
        [
            f"`{name}`",
            *(cell(found.get((name, size))) for size in sizes),
            f"{found[(name, sizes[-1])]['forward_equivalents']:.0f}",
            f"{found[(name, sizes[-1])]['seconds']:.0f}",
        ]
        for name in names
    ]
    heads = ["predictor", *(f"{size:g} bits" for size in sizes), "forward-equivalents", "seconds"]
    return markdown(heads, body)


SHORT = (4.0, 3.0, 2.5, 2.0)


def peers(document: Document) -> str:
    """Everyone at every budget."""
    rows = document["rows"]
    sizes = sorted({row["budget"] for row in rows if row["budget"] is not None}, reverse=True)
    found = {(row["contestant"], row["budget"]): row for row in rows}
    body = []
    for name in dict.fromkeys(row["contestant"] for row in rows):
        mine = [row for row in rows if row["contestant"] == name]
        if all("reason" in row for row in mine):
            body.append([name, f"does not apply: {mine[0]['reason']}", *[""] * len(sizes)])
            continue
        cells = [_peer_cell(found.get((name, size))) for size in sizes]
        seconds = [row["seconds"] for row in mine if "seconds" in row]
        body.append([name, *cells, f"{statistics.mean(seconds):.0f}"])
    return markdown(["at delivered average bits", *(f"{size:.4g}" for size in sizes), "seconds"], body)


def peers_in_short(document: Document) -> str:
    """Everyone at the budgets that are asked; a tool that chooses no widths stands at the budget below its own size."""
    found: dict[str, dict[float, str]] = {}
    for row in sorted(document["rows"], key=lambda row: not row["contestant"].startswith("geoquant")):
        cells = found.setdefault(row["contestant"].split(", int")[0], {})
        if row["budget"] in SHORT:
            cells[row["budget"]] = "no plan" if "reason" in row else _figure(row)
        elif "reason" not in row and not row["contestant"].startswith("geoquant"):
            size = next(size for size in SHORT if size <= row["average_bits"])
            cells[size] = f"{_figure(row)} (at {row['average_bits']:.2f})"
    body = [[name, *(cells.get(size, "") for size in SHORT)] for name, cells in found.items() if cells]
    body[0] = [f"**{cell}**" for cell in body[0]]
    return markdown(["test accuracy, %", *(f"{size:g} bits" for size in SHORT)], body)


def _peer_cell(row: dict[str, Any] | None) -> str:
    return "" if row is None else "failed" if "reason" in row else _figure(row)


def trained(document: Document) -> str:
    """Traces, norms and condition numbers by part of each trained net."""
    texts = []
    for net, result in document.items():
        if net == "provenance":
            continue
        body = [
            [
                row["part"],
                str(row["layers"]),
                f"{row['weights']:,}",
                f"{row['trace']:.4g}"
                + (f" ± {row['trace_stderr_at_most']:.2g}" if row["trace_stderr_at_most"] else ""),
                f"{row['trace_per_weight']:.2g}",
                f"{row['spectral_norm']:.3g}",
                f"{row['condition_number']:.3g}",
            ]
            for row in result["parts"]
        ]
        head = ["part", "layers", "weights", "Gauss–Newton trace", "per weight", "spectral norm", "condition number"]
        texts.append(f"**{net}**, {result['samples']} samples, {result['seconds']:.0f} s:\n\n{markdown(head, body)}")
    return "\n\n".join(texts)


def activations(document: Document) -> str:
    """Compare chosen activation bits with the same bits everywhere, at equal bit-operations."""
    head = ["at most", "plan", "10⁹ bit-operations", "bytes", "weight bits", "activation bits", "top-1 %", "KL"]
    body = [
        [
            row["budget"],
            row["plan"],
            f"{row['giga_bit_operations']:.3f}",
            f"{row['bytes']:,}",
            f"{row['average_bits']:.2f}",
            f"{row['average_activation_bits']:.2f}",
            f"{row['accuracy']:.2f} ± {row['stderr']:.2f}",
            f"{row['kl']:.3f}",
        ]
        for row in document["rows"]
    ]
    return markdown(head, body)
