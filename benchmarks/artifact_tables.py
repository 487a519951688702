"""Tables of docs/language-models.md and docs/export.md, each made from committed results."""

from __future__ import annotations

import textwrap
from typing import Any

from result_tables import markdown

Document = dict[str, Any]

# Weights in billions and width of models whose cost is extrapolated.
LARGER = {"8B": (8.03, 4096), "70B": (70.6, 8192)}
WIDTHS = {"100m": 768, "1b": 2048}


def language(document: Document) -> str:
    """Loss of everybody at every budget, and why somebody has none."""
    rows, cells = document["rows"], document["cells"]
    budgets = sorted({cell["key"]["budget"] for cell in cells}, reverse=True)
    found = {(row["contestant"], row["budget"]): row for row in rows}
    names = list(dict.fromkeys(cell["key"]["contestant"] for cell in cells))
    best = {budget: min(row["loss"] for row in rows if row["budget"] == budget) for budget in budgets}
    body = [[name, *(_loss(found.get((name, budget)), best[budget]) for budget in budgets)] for name in names]
    text = markdown(["nats per token at average bits", *(f"{budget:g}" for budget in budgets)], body)
    said: dict[tuple[str, str], list[float]] = {}
    for cell in cells:
        if "reason" in cell:
            said.setdefault((cell["key"]["contestant"], cell["reason"]), []).append(cell["key"]["budget"])
    why = [f"- {name}, {_listed(at)}: {textwrap.shorten(reason, 110)}" for (name, reason), at in said.items()]
    seeds = max(row["seeds"] for row in rows)
    head = f"Float: {document['float']['loss']:.3f}. Calibration sets: {seeds}."
    return "\n".join([head, "", text, *(["", "No figure:", "", *why] if why else [])])


def _loss(row: Document | None, best: float) -> str:
    if row is None:
        return "–"
    text = f"{row['loss']:.3f}" + (f" ± {row['spread']:.3f}" if row["seeds"] > 1 else "")
    return f"**{text}**" if row["loss"] <= best else text


def _listed(budgets: list[float]) -> str:
    return ", ".join(f"{budget:g}" for budget in sorted(set(budgets), reverse=True))


def latency(document: Document) -> str:
    """Milliseconds of float32 and quantized files, bytes, and how far the logits are off."""
    body = []
    for name, case in document["cases"].items():
        batches = sorted((int(key[5:]), each) for key, each in case.items() if key.startswith("batch"))
        times = [f"{each['quantized_ms']:.3g} ({each['ratio']:.2f}×)" for _, each in batches]
        smaller = case["float32_bytes"] / case["onnx_bytes"]
        body.append([name, *times, f"{smaller:.1f}×", f"{case['exact_difference']:.0e}"])
    heads = ["case", *(f"batch {size}, ms" for size, _ in batches), "smaller by", "logits off by"]
    return markdown(heads, body)


def large(*documents: Document) -> str:
    """Peak memory and processor seconds of each job on each size."""
    body = []
    for document in documents:
        size = f"{document['weights'] / 1e9:.3g}"
        for job, each in document["summary"].items():
            figures = (
                each["peak_gib"],
                each["seconds"],
                each["seconds_per_layer"],
                each["seconds_per_billion_weights"],
            )
            body.append([size, job, f"{figures[0]:.2f}", *(f"{figure:.0f}" for figure in figures[1:])])
    heads = ["weights, 10⁹", "job", "peak, GiB", "seconds", "a layer", "per 10⁹ weights"]
    return markdown(heads, body)


def larger(document: Document, size: str) -> str:
    """Hours of each job on larger models: time per weight as measured, and growing with the width, as GPTQ's does."""
    body = []
    for job, each in document["summary"].items():
        cells = []
        for billions, width in LARGER.values():
            least = billions * each["seconds_per_billion_weights"] / 3600
            most = least * width / WIDTHS[size]
            cells.append(f"{least:.2g}" if job != "gptq" else f"{least:.2g} to {most:.2g}")
        body.append([job, *cells])
    return markdown(["hours of one core", *LARGER], body)


def encoders(document: Document) -> str:
    """What rounding one layer alone does, by kind of layer, in each encoder."""
    texts = []
    for name, result in document.items():
        if name == "provenance":
            continue
        grids = [key for key in result["damage"][0] if key.startswith("int") and " " not in key]
        body = [
            [
                row["part"],
                str(row["layers"]),
                f"{row['weights']:,}",
                *(f"{row[grid]:.2g} ({row[f'{grid} per million weights']:.2g})" for grid in grids),
            ]
            for row in result["damage"]
        ]
        table = markdown(["part", "layers", "weights", *grids], body)
        texts.append(f"**{name}**, test accuracy {100 * result['test_accuracy']:.1f} %:\n\n{table}")
    return "\n\n".join(texts)
