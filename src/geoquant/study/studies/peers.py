"""How does geoquant compare with other tools at equal stored bits? The tables of docs/peers.md as a study.

The tools live in environments of their own (`benchmarks/peers/environments.py`), outside the package. Where
``$GEOQUANT_PEERS_DIR`` names their folder, a cell runs the comparison of the source tree; else a cell reads the result
that is committed there; where there is neither, nothing was measured, and the claims say so.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from geoquant.errors import StudyError
from geoquant.findings import Claim, Figure, Series, Table, Value
from geoquant.study.at_hand import missing_data, missing_weights, weights_file
from geoquant.study.cases import FILES, RESNET20, STORIES
from geoquant.study.declaration import PRESETS, Configuration, Preset, Study, register
from geoquant.study.judging import Finding, judged
from geoquant.study.results import Result, Results

ENVIRONMENTS = "GEOQUANT_PEERS_DIR"
BENCHMARKS = Path(__file__).resolve().parents[4] / "benchmarks"
"""Of the source tree; an installed package has none."""
SOURCE = "docs/peers.md, Beside other tools"
SCRIPTS = {"vision": "peers/run.py", "language": "stories260k.py"}
COMMITTED = {"vision": "peers.json", "language": "stories260k.json"}
NETS = {"vision": RESNET20, "language": STORIES}
FIGURE = {"vision": "accuracy", "language": "loss"}
OWN = ("geoquant", "uniform")
"""How the names of rows begin that are no other tool's."""
QUICK = {
    "vision": ["--budgets", "3", "--seeds", "1", "--images", "256", "--test-images", "500"],
    "language": ["--budgets", "3.005", "--seeds", "1"],
}
"""Arguments of a quick look; other presets take the scripts' own."""
LAST_LINES = 5


def configurations(preset: Preset) -> Iterator[Configuration]:
    """Yield a cell for each comparison: run where the tools are at hand, read where a result is committed."""
    for part in SCRIPTS:
        kept = BENCHMARKS / "results" / COMMITTED[part]
        if ENVIRONMENTS not in os.environ and kept.is_file():
            yield {"part": part, "committed": kept.name, "sha256": hashlib.sha256(kept.read_bytes()).hexdigest()[:16]}
        else:
            yield {"part": part, "arguments": QUICK[part] if preset == "quick" else []}


def unavailable(configuration: Configuration) -> str | None:
    """Say what is missing to run a comparison."""
    if "committed" in configuration:
        return None
    if ENVIRONMENTS not in os.environ:
        return f"set ${ENVIRONMENTS} to the folder that `python benchmarks/peers/environments.py --folder` filled"
    if not (BENCHMARKS / SCRIPTS[configuration["part"]]).is_file():
        return "the comparison is part of the source tree, not of the installed package"
    data = missing_data("cifar10") if configuration["part"] == "vision" else None
    return data or missing_weights(FILES[NETS[configuration["part"]]])


def run(configuration: Configuration) -> dict[str, Any]:
    """Return the rows of a comparison: contestant, budget, delivered bits, figure, spread, seconds."""
    part = configuration["part"]
    if "committed" in configuration:
        text = (BENCHMARKS / "results" / configuration["committed"]).read_text(encoding="utf-8")
        return read(json.loads(text), FIGURE[part])
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / COMMITTED[part]
        done = subprocess.run(
            [sys.executable, *_command(part, configuration["arguments"], target)],
            cwd=BENCHMARKS.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        if not target.is_file():
            said = "\n".join(done.stderr.strip().splitlines()[-LAST_LINES:])
            raise StudyError(f"the comparison {SCRIPTS[part]} left no result; it said: {said}")
        return read(json.loads(target.read_text(encoding="utf-8")), FIGURE[part])


def _command(part: str, arguments: Sequence[str], target: Path) -> list[str]:
    place = os.environ[ENVIRONMENTS]
    weights = str(weights_file(FILES[NETS[part]]))
    named = {
        "vision": ["--weights", weights, "--folder", place],
        "language": ["--checkpoint", weights, "--peers", place],
    }
    return [str(BENCHMARKS / SCRIPTS[part]), *named[part], "--threads", "1", "--output", str(target), *arguments]


def read(document: Mapping[str, Any], figure: str) -> dict[str, Any]:
    """Return a comparison's document as metrics, its figures under one name.

    >>> row = {"contestant": "a", "budget": 3.0, "average_bits": 2.9, "loss": 1.5, "spread": 0.1, "seconds": 2.0}
    >>> read({"rows": [row]}, "loss")["rows"][0]["figure"]
    1.5
    """
    names = ("contestant", "budget", "average_bits", "spread", "seconds", "reason")
    rows = [{**{name: row.get(name) for name in names}, "figure": row.get(figure)} for row in document["rows"]]
    return {"born": document.get("provenance", {}).get("command", ""), "rows": rows}


def best(cell: Result, budget: float, own: bool) -> Mapping[str, Any] | None:
    """Return the best row of geoquant, or of the other tools, at a budget."""
    rows = [row for row in cell.rows if row["budget"] == budget and row["figure"] is not None]
    mine = [row for row in rows if (own and row["contestant"].startswith("geoquant")) or (not own and _is_peer(row))]
    sign = 1 if cell["part"] == "vision" else -1
    return max(mine, key=lambda row: sign * row["figure"], default=None)


def _is_peer(row: Mapping[str, Any]) -> bool:
    return not row["contestant"].startswith(OWN)


def ahead(results: Results) -> Claim:
    """Compare geoquant's best with the best of the others at every budget; name the budgets where there is no other."""
    findings, alone = [], []
    for cell in results:
        unit, sign = (" %", 1) if cell["part"] == "vision" else (" nats a token", -1)
        for budget in dict.fromkeys(row["budget"] for row in cell.rows if row["budget"] is not None):
            own, other = best(cell, budget, True), best(cell, budget, False)
            if own is not None and other is not None:
                text = f"{NETS[cell['part']]} at {budget:g} bits: {own['figure']:.4g}{unit} by {own['contestant']}, "
                text += f"{other['figure']:.4g} by {other['contestant']}"
                findings.append(Finding(text, sign * (own["figure"] - other["figure"]) >= 0))
            elif own is not None:
                alone.append(f"{NETS[cell['part']]} at {budget:g} bits")
    text = "At equal delivered bits geoquant is at least as good as every other tool that has a figure there"
    claim = judged(text, SOURCE, results, findings)
    without = f"; no other tool has one on {', '.join(alone)}" if alone else ""
    return replace(claim, measured=claim.measured + without)


def over_bits(part: str, results: Results) -> Figure | None:
    """Draw the figure of every contestant over its delivered bits."""
    cell = next(iter(results.where(part=part)), None)
    if cell is None:
        return None
    series = []
    for name in dict.fromkeys(row["contestant"] for row in cell.rows):
        rows = [row for row in cell.rows if row["contestant"] == name and row["figure"] is not None]
        rows.sort(key=lambda row: row["average_bits"])
        if rows:
            x, y, spread = (tuple(row[key] for row in rows) for key in ("average_bits", "figure", "spread"))
            series.append(Series(name, x, y, spread))
    unit = "accuracy on test images, %" if part == "vision" else "cross-entropy, nats a token"
    words = "; ".join(f"{each.name} {each.y[-1]:.4g} at {each.x[-1]:.3g} bits" for each in series)
    return Figure(
        f"peers-{part}",
        "lines",
        f"geoquant beside other tools: {NETS[part]}",
        "delivered bits per weight, scales included",
        unit,
        tuple(series),
        f"A line a tool. {words}.",
        note=f"Born of: {cell['born']}" if cell["born"] else "",
    )


def table(part: str, results: Results) -> Table:
    """List every contestant at every budget."""
    rows: list[tuple[Value, ...]] = []
    for cell in results.where(part=part):
        for row in cell.rows:
            shown = (row["average_bits"], row["figure"], row["spread"], row["seconds"], row["reason"] or "")
            rows.append((row["contestant"], row["budget"], *shown))
    unit = "accuracy, %" if part == "vision" else "nats a token"
    columns = ("contestant", "budget, bits", "delivered bits", unit, "± over calibration sets", "seconds", "why not")
    return Table(f"peers-{part}", f"Other tools: {NETS[part]}", columns, tuple(rows))


PEERS = register(
    Study(
        "peers",
        "geoquant beside other tools, at equal stored bits",
        SOURCE,
        "On the same net, the same calibration data and at the same delivered bits: how good are geoquant's plans "
        "beside those of other tools?",
        {preset: partial(configurations, preset) for preset in PRESETS},
        run,
        claims=(ahead,),
        figures=tuple(partial(over_bits, part) for part in SCRIPTS),
        tables=tuple(partial(table, part) for part in SCRIPTS),
        unavailable=unavailable,
    )
)
