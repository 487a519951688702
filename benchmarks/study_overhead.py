"""What a study costs beside its cells: time per cell, reading ten thousand of them, and writing their report.

    python benchmarks/study_overhead.py --threads 1

Cells here do nothing, so what passes between two of them is the runner's. Workers are up before the clock starts.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from common import parser, write_results
from geoquant.cluster import Cluster
from geoquant.findings import Claim, Figure, Table
from geoquant.report import write_site
from geoquant.study import Configuration, Results, Store, Study, gather, run_study
from geoquant.study.executing import execute

METHODS = tuple(f"method {letter}" for letter in "ABCDEFGHIJ")
WIDTHS = tuple(range(2, 32, 3))
LIMITS = {"cell": 0.05, "report": 30.0}


def nothing(configuration: Configuration) -> Mapping[str, Any]:
    """Return as much as a cell of a study usually does."""
    seed, bits = configuration["seed"], configuration["bits"]
    rows = [{"layer": f"layer{place}", "bits": bits, "damage": (seed + place) / bits} for place in range(8)]
    return {"accuracy": 90 + seed / (seed + bits), "damage": 1 / bits, "bits": [bits] * 8, "rows": rows}


def configurations(count: int) -> Iterator[Configuration]:
    for number in range(count):
        seed, rest = divmod(number, len(METHODS) * len(WIDTHS))
        yield {"method": METHODS[rest // len(WIDTHS)], "bits": WIDTHS[rest % len(WIDTHS)], "seed": seed}


def accuracy(results: Results) -> Figure:
    series = tuple(cells.series(name, "bits", "accuracy") for (name,), cells in results.by("method"))
    return Figure("accuracy", "lines", "Accuracy", "bits", "%", series, "Lines that rise with the bits.")


def points(results: Results) -> Figure:
    series = tuple(cells.series(name, "bits", "damage") for (name,), cells in results.by("method"))
    return Figure("damage", "scatter", "Damage", "bits", "nats", series, "Points that fall with the bits.")


def means(results: Results) -> Table:
    rows = tuple((name, str(cells.summary("accuracy"))) for (name,), cells in results.by("method"))
    return Table("means", "Means", ("method", "accuracy"), rows)


def everything(results: Results) -> Claim:
    return Claim("cells count", "arithmetic", f"{len(results)} cells", "holds", results.command)


def study(count: int, name: str = "overhead") -> Study:
    grids = dict.fromkeys(("quick", "laptop", "full"), lambda: configurations(count))
    reading: dict[str, Any] = {"claims": (everything,), "figures": (accuracy, points), "tables": (means,)}
    return Study(name, "Cells that do nothing", "arithmetic", "What does a study cost?", grids, nothing, **reading)


def per_cell(count: int, folder: Path, **how: Any) -> dict[str, float]:
    """Return milliseconds between two finished cells, after the first, and this process's own part of them."""
    stamps: list[float] = []
    busy = time.process_time()
    run_study(study(count), "quick", folder, watch=lambda *_: stamps.append(time.perf_counter()), **how)
    gaps = [1000 * (later - earlier) for earlier, later in itertools.pairwise(stamps)]
    quarter = max(1, len(gaps) // 4)
    return {
        "cells": count,
        "mean_ms": round(statistics.fmean(gaps), 2),
        "cpu_ms": round(1000 * (time.process_time() - busy) / count, 2),
        "median_ms": round(statistics.median(gaps), 2),
        "slowest_quarter_ms": round(statistics.fmean(sorted(gaps)[-quarter:]), 2),
    }


def reading(count: int, folder: Path) -> dict[str, float]:
    """Fill a folder with so many cells; time reading them, reading off the findings, and the site."""
    made, store = study(count), Store(folder)
    outcome = execute(nothing, made.grid("quick")[0])
    for cell in made.grid("quick"):
        store.write(cell, outcome)
    start, busy = time.perf_counter(), time.process_time()
    found = store.read_all(made.grid("quick"))
    read = time.perf_counter()
    findings = gather(made, "quick", folder)
    gathered = time.perf_counter()
    index = write_site(folder / "site", [findings])
    done = time.perf_counter()
    return {
        "cells": len(found),
        "read_seconds": round(read - start, 2),
        "findings_seconds": round(gathered - read, 2),
        "site_seconds": round(done - gathered, 2),
        "cpu_seconds": round(time.process_time() - busy, 2),
        "site_bytes": sum(path.stat().st_size for path in index.parent.rglob("*") if path.is_file()),
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def add(name: str, row: dict[str, float]) -> None:
        found[name] = row
        print(name, row, flush=True)

    add("one process", per_cell(arguments.cells, folder / "one"))
    add("two workers", per_cell(arguments.cells, folder / "two", jobs=2))
    if arguments.ray:
        with Cluster("local", 2) as cluster:
            add("two Ray workers", per_cell(arguments.cells, folder / "ray", cluster=cluster))
    add("report", reading(arguments.report_cells, folder / "report"))
    return found


def main() -> None:
    made = parser(__doc__ or "", "study_overhead")
    made.add_argument("--cells", type=int, default=500)
    made.add_argument("--report-cells", type=int, default=10_000)
    made.add_argument("--ray", action="store_true", help="with Ray, too")
    arguments = made.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(arguments, Path(folder))
    slowest = max(row["mean_ms"] for row in found.values() if "mean_ms" in row) / 1000
    built = sum(found["report"][part] for part in ("findings_seconds", "site_seconds"))
    print(f"limits: {LIMITS['cell']} s a cell (measured {slowest:.4f}), {LIMITS['report']} s a report ({built:.1f})")
    write_results(arguments, found)


if __name__ == "__main__":
    main()
