"""What is compared, how it is counted, and what the table says; independent of any peer's environment.

A *cell* is one run of one contestant at one budget on one calibration set. Its result is a file of its own, so that
a rerun measures only what is missing. Delivered bits are counted by geoquant's own plan: what a driver reports must
agree with the plan of its widths.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from driving import SCALE_BITS, LayerFormat

from geoquant.models import Inventory
from geoquant.plan import Plan
from geoquant.storage import read_document, write_document

CELL_VERSION = 1
Result = dict[str, Any]


@dataclass(frozen=True)
class Contestant:
    """A tool with its settings.

    Attributes:
        name: how the table calls it.
        environment: name of its virtual environment; None for geoquant itself.
        driver: file that runs it.
        options: settings that the driver reads.
        searches: whether it chooses widths for a budget; otherwise it runs once, at the storage its width gives.
    """

    name: str
    environment: str | None
    driver: str
    options: Mapping[str, Any] = field(default_factory=dict)
    searches: bool = True


@dataclass(frozen=True)
class Cell:
    """One contestant, one budget (None: whatever its width takes), one calibration set, and a digest of the data."""

    contestant: Contestant
    budget: float | None
    seed: int
    data: str = ""

    @property
    def key(self) -> str:
        """The name of the file of this cell: another for other settings or data."""
        text = json.dumps([asdict(self.contestant), self.budget, self.seed, self.data], sort_keys=True)
        budget = "own" if self.budget is None else f"{self.budget:g}"
        name = "".join(letter if letter.isalnum() else "-" for letter in self.contestant.name)
        return f"{name}-{budget}-{self.seed}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def grid_name(layer: LayerFormat) -> str:
    """Return the grid of geoquant that stores codes and scales as `layer` does.

    >>> grid_name(LayerFormat(3)), grid_name(LayerFormat(4, group=128)), grid_name(LayerFormat(16))
    ('int3:narrow:maxabs', 'int4:narrow:group128:maxabs', 'fp16')
    """
    if layer.bits in (16, 32):
        return f"fp{layer.bits}"
    if layer.bits in (1, 1.6):
        return "binary" if layer.bits == 1 else "ternary"
    group = "" if layer.group is None else f":group{layer.group}"
    return f"int{layer.bits}:narrow{group}:maxabs"


def delivered_bits(inventory: Inventory, layers: Mapping[str, LayerFormat]) -> float:
    """Count codes, scales and offsets of all layers over the number of weights; layers not named count as float32.

    Codes and scales are counted by the plan; numbers stored beside a scale take 16 bits each.

    Raises:
        ValueError: a name is no layer of the inventory.
    """
    unknown = sorted(set(layers) - set(inventory.names))
    if unknown:
        raise ValueError(f"the answer names layers that the net does not have: {', '.join(unknown)}")
    formats = [layers.get(name, LayerFormat(32)) for name in inventory.names]
    plan = Plan(inventory, tuple(grid_name(layer) for layer in formats))
    offsets = 0
    for site, layer in zip(inventory.sites, formats, strict=True):
        channels, fan_in = site.matrix_shape
        offsets += layer.offsets * channels * math.ceil(fan_in / (layer.group or fan_in))
    return plan.average_bits + SCALE_BITS * offsets / inventory.weights


def finished(folder: Path, cell: Cell, measure: Callable[[], Result]) -> tuple[Result, bool]:
    """Return the result of `cell` and whether it was measured now; what is on disk is not measured again.

    A cell that could not be measured is a result too, with the reason; it is tried again by the next run.
    """
    path = folder / f"{cell.key}.json"
    if path.exists():
        _, kept = read_document(path, "peer cell", CELL_VERSION)
        if "reason" not in kept:
            return kept, False
    result = measure()
    write_document(path, "peer cell", CELL_VERSION, result)
    return result, True


def with_budgets(results: Iterable[tuple[Cell, Result]]) -> list[tuple[Cell, Result]]:
    """Give cells without a budget the one that they just keep, so that others can be given the same."""
    return [
        (replace(cell, budget=math.ceil(1e4 * result["average_bits"]) / 1e4), result)
        if cell.budget is None and "average_bits" in result
        else (cell, result)
        for cell, result in results
    ]


def rows(results: Iterable[tuple[Cell, Result]]) -> list[dict[str, Any]]:
    """Gather cells over their calibration sets: mean and spread of accuracy, means of bits and seconds.

    A contestant that failed on any set has no figure there, but a reason.
    """
    grouped: dict[tuple[str, float | None], list[Result]] = defaultdict(list)
    for cell, result in results:
        grouped[(cell.contestant.name, cell.budget)].append(result)
    return [{"contestant": name, "budget": budget, **_gathered(members)} for (name, budget), members in grouped.items()]


def _gathered(members: Sequence[Result]) -> dict[str, Any]:
    reasons = [member["reason"] for member in members if "reason" in member]
    if reasons:
        return {"reason": reasons[0]}
    accuracies = [member["accuracy"] for member in members]
    return {
        "average_bits": round(statistics.mean(member["average_bits"] for member in members), 4),
        "accuracy": round(statistics.mean(accuracies), 2),
        "spread": round(statistics.stdev(accuracies), 2) if len(accuracies) > 1 else 0.0,
        "kl": round(statistics.mean(member["kl"] for member in members), 5),
        "seconds": round(statistics.mean(member["seconds"] for member in members), 1),
        "seeds": len(members),
    }


def table(gathered: Sequence[Mapping[str, Any]]) -> str:
    """Render rows as Markdown: one line a contestant and budget, best accuracy first within a budget."""
    lines = ["| budget | contestant | delivered bits | accuracy, % | ± | seconds |", "|-|-|-|-|-|-|"]

    def order(row: Mapping[str, Any]) -> tuple[bool, float, float, str]:
        budget = row["budget"]
        return budget is None, -(budget or 0.0), -row.get("accuracy", -1.0), row["contestant"]

    for row in sorted(gathered, key=order):
        budget = "own" if row["budget"] is None else f"{row['budget']:g}"
        if "reason" in row:
            lines.append(f"| {budget} | {row['contestant']} | does not apply: {row['reason']} | | | |")
        else:
            figures = f"{row['average_bits']:.3f} | {row['accuracy']:.2f} | {row['spread']:.2f} | {row['seconds']:.1f}"
            lines.append(f"| {budget} | {row['contestant']} | {figures} |")
    return "\n".join(lines)
