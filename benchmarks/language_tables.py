"""What the benchmarks of language models share: texts kept apart, finished cells kept in one file, one table."""

from __future__ import annotations

import itertools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

import geoquant as gq
from geoquant.data import TextSet, calibration_batches, evaluation_batches, fingerprint, load_text
from geoquant.models import load_pretrained, load_tokenizer
from geoquant.quantize import NetworkTuning, quantize
from geoquant.storage import digest, read_document, write_document

CELLS, CELLS_VERSION = "language-cells", 1

# What a plan may choose from. Scales of short channels cost: a row of 64 weights spends 1/4 bit a weight on an fp16
# scale, 1/8 on one of eight bits, next to nothing on one scale for the whole matrix.
MENU = (
    *(f"int{bits}:mse-signed{more}" for bits in range(2, 9) for more in ("", ":e5m2", ":tensor")),
    *(f"int{bits}:mse-signed:group16:e5m2" for bits in (2, 3)),
    *(f"ternary{more}" for more in ("", ":e5m2", ":tensor")),
    "binary:e5m2",
)
# Single grids for the whole model: every width, with the scales that leave most of a budget to codes.
UNIFORM = (
    *(f"int{bits}:mse-signed{more}" for bits in range(2, 9) for more in ("", ":tensor", ":group32:e5m2", ":e5m2")),
    *(f"ternary{more}" for more in ("", ":tensor", ":e5m2")),
    "binary:e5m2",
)
UNIFORM_TRIED = 4
SHARE_FOR_CHOICES = 0.2


@dataclass(frozen=True)
class Settings:
    """What a table is made with.

    Attributes:
        checkpoint: Hugging Face folder.
        train: text for calibration; its last documents (or characters) are kept aside for choices.
        test: text of the figures, looked at once per cell.
        window: tokens at a time.
        calibration: windows to calibrate on, drawn by the seed.
        profile: of these, for the profile.
        choices: windows on which choices are made.
        evaluated: windows of the test text; None for all.
        steps: of learning the codes.
        rate: learning rate of codes; scales and norms get a tenth.
    """

    checkpoint: Path
    train: str
    test: str
    window: int = 256
    calibration: int = 128
    profile: int = 16
    choices: int = 64
    evaluated: int | None = 128
    steps: int = 300
    rate: float = 0.05


class Bench:
    """A model, its texts, and everything that is measured once."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.model = load_pretrained(settings.checkpoint)
        self.tokenizer = load_tokenizer(settings.checkpoint)
        self.train, held = _apart(load_text(settings.train, "train"))
        test = load_text(settings.test, "test")
        options = {"window": settings.window, "batch_size": 8}
        self.choices = list(evaluation_batches(held, self.tokenizer, limit=settings.choices, **options))
        self.test = list(evaluation_batches(test, self.tokenizer, limit=settings.evaluated, **options))
        self.data = digest({"held": fingerprint(self.choices), "test": fingerprint(self.test)})[:12]

    def calibration(self, seed: int) -> list[Any]:
        """Draw windows of the training text."""
        options = {"window": self.settings.window, "batch_size": 8, "seed": seed}
        return list(calibration_batches(self.train, self.tokenizer, limit=self.settings.calibration, **options))

    def choice_loss(self, model: nn.Module) -> float:
        """Return nats per token where choices are made."""
        return gq.evaluate(model, self.choices).cross_entropy.value

    def figures(self, model: nn.Module) -> dict[str, float]:
        """Return the figures of the table: nats per token on the test text, with the standard error over windows."""
        found = gq.evaluate(model, self.test)
        return {"loss": found.cross_entropy.value, "stderr": found.cross_entropy.stderr, "tokens": found.predictions}

    def judged(self, plan: gq.Plan, model: nn.Module, **more: Any) -> dict[str, Any]:
        """Return all that a cell keeps."""
        sizes = {"average_bits": plan.average_bits, "bytes": plan.bytes}
        return {**sizes, **self.figures(model), "choice_loss": self.choice_loss(model), **more}


def _apart(text: TextSet) -> tuple[TextSet, TextSet]:
    """Cut a text into one for calibration and one for choices, between documents where there are several."""
    documents = text.documents
    if len(documents) > 1:
        border = int((1 - SHARE_FOR_CHOICES) * len(documents))
        parts = documents[:border], documents[border:]
    else:
        border = int((1 - SHARE_FOR_CHOICES) * len(documents[0]))
        parts = (documents[0][:border],), (documents[0][border:],)
    return TextSet(parts[0], f"{text.description}, calibration"), TextSet(parts[1], f"{text.description}, choices")


class Cells:
    """Finished cells in one checksummed JSON file; what is there is not measured again, unless it failed."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._found: dict[str, Any] = read_document(file, CELLS, CELLS_VERSION)[1] if file.exists() else {}

    def kept(self, key: dict[str, Any]) -> dict[str, Any] | None:
        """Return the cell of `key` as an earlier run left it, with figures or a reason; None where there is none."""
        return self._found.get(digest(key)[:16])

    def get(self, key: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the cell of `key`, measured now where it is missing."""
        name = digest(key)[:16]
        if "reason" in self._found.get(name, {"reason": "never tried"}):
            start = time.perf_counter()
            self._found[name] = {"key": key, **measure(), "seconds": round(time.perf_counter() - start, 1)}
            write_document(self.file, CELLS, CELLS_VERSION, self._found)
        found: dict[str, Any] = self._found[name]
        return found


def uniform_candidates(model: nn.Module, budget: float) -> list[gq.Plan]:
    """Return the single-grid plans that use most of a budget."""
    plans = [gq.uniform_plan(model, grid) for grid in UNIFORM]
    within = [plan for plan in plans if plan.average_bits <= budget]
    return sorted(within, key=lambda plan: -plan.average_bits)[:UNIFORM_TRIED]


def uniform(bench: Bench, budget: float, seed: int, rounding: str) -> dict[str, Any]:
    """Measure the best single grid within a budget, chosen where choices are made."""
    batches = bench.calibration(seed) if rounding != "nearest" else None
    tried = []
    for plan in uniform_candidates(bench.model, budget):
        model = quantize(bench.model, plan, batches, rounding=rounding, norms="none")
        tried.append((bench.choice_loss(model), plan.names[0], plan, model))
    _, name, plan, model = min(tried, key=lambda each: each[:2])
    return bench.judged(plan, model, grid=name, tried={each[1]: each[0] for each in tried})


def learned_uniform(bench: Bench, cells: Cells, budget: float, seed: int) -> dict[str, Any]:
    """Learn the codes of the grid that was the best without."""
    chosen = cells.get(key_of(bench, "uniform, GPTQ", budget, seed), lambda: uniform(bench, budget, seed, "gptq"))
    plan = gq.uniform_plan(bench.model, chosen["grid"])
    batches = bench.calibration(seed)
    model = quantize(bench.model, plan, batches, rounding="gptq", norms="none", refine=tuning(bench.settings))
    return bench.judged(plan, model, grid=chosen["grid"])


def tuning(settings: Settings) -> NetworkTuning:
    """Return the refinement that learns codes, scales and norms together."""
    rate = settings.rate
    return NetworkTuning(steps=settings.steps, codes=rate, scales=rate / 10, free=rate / 10)


def planned(
    bench: Bench, cells: Cells, budget: float, seed: int, rounding: str, learned: bool = False
) -> dict[str, Any]:
    """Profile, allocate, round and, if wanted, learn codes together."""
    batches = bench.calibration(seed)
    plan = gq.allocate(bench_profile(bench, cells, batches, seed), gq.Budget(average_bits=budget))
    refine = tuning(bench.settings) if learned else "none"
    model = quantize(bench.model, plan, batches, rounding=rounding, norms="none", refine=refine, seed=seed)
    return bench.judged(plan, model, grids=dict(zip(plan.inventory.names, plan.names, strict=True)))


def bench_profile(bench: Bench, cells: Cells, batches: Sequence[Any], seed: int) -> gq.Profile:
    """Measure the profile of one calibration set, or read it from an earlier run."""
    few = batches[: max(1, bench.settings.profile // 8)]
    named = digest({"data": fingerprint(few), "menu": list(MENU), "checkpoint": bench.settings.checkpoint.name})[:12]
    folder = cells.file.parent / f"{cells.file.stem}-profiles" / f"{seed}-{named}"
    if not (folder / "profile.json").exists():
        gq.profile(bench.model, few, grids=MENU, predictors=["one_layer_kl"], seed=seed).save(folder)
    return gq.Profile.load(folder)


CONTESTANTS: dict[str, Callable[[Bench, Cells, float, int], dict[str, Any]]] = {
    "uniform, nearest": lambda bench, cells, budget, seed: uniform(bench, budget, seed, "nearest"),
    "uniform, GPTQ": lambda bench, cells, budget, seed: uniform(bench, budget, seed, "gptq"),
    "geoquant, GPTQ": lambda bench, cells, budget, seed: planned(bench, cells, budget, seed, "gptq"),
    "geoquant, descent": lambda bench, cells, budget, seed: planned(bench, cells, budget, seed, "descent"),
    "uniform, GPTQ, codes learned": learned_uniform,
    "geoquant, GPTQ, codes learned": lambda bench, cells, budget, seed: planned(
        bench, cells, budget, seed, "gptq", True
    ),
}
UNSEEDED = ("uniform, nearest",)


def key_of(bench: Bench, name: str, budget: float, seed: int) -> dict[str, Any]:
    """Return what tells a cell from all others."""
    settings = {each: str(value) for each, value in vars(bench.settings).items() if each != "checkpoint"}
    return {"contestant": name, "budget": budget, "seed": seed, "data": bench.data, **settings}


def measure_cells(
    bench: Bench, cells: Cells, names: Sequence[str], budgets: Sequence[float], seeds: int, finished: bool = False
) -> list[dict[str, Any]]:
    """Measure every contestant at every budget on every calibration set, saying how it goes.

    With `finished`, only what is measured already is gathered.
    """
    found = []
    for seed, budget, name in itertools.product(range(seeds), budgets, names):
        key = key_of(bench, name, budget, seed)
        if (seed and name in UNSEEDED) or (finished and cells.kept(key) is None):
            continue
        cell = cells.get(key, lambda n=name, b=budget, s=seed: CONTESTANTS[n](bench, cells, b, s))
        found.append(cell)
        print(f"{budget:g} bits, {name}, seed {seed}: {cell['loss']:.4f} at {cell['average_bits']:.3f}", flush=True)
    return found


def rows(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Gather cells over seeds: mean loss, spread (standard deviation over calibration sets), bits, bytes."""
    groups: dict[tuple[float, str], list[dict[str, Any]]] = defaultdict(list)
    for cell in cells:
        groups[cell["key"]["budget"], cell["key"]["contestant"]].append(cell)
    return [
        {
            "budget": budget,
            "contestant": name,
            "seeds": len(group),
            "loss": statistics.mean(cell["loss"] for cell in group),
            "spread": statistics.stdev(cell["loss"] for cell in group) if len(group) > 1 else 0.0,
            "average_bits": max(cell["average_bits"] for cell in group),
            "bytes": max(cell["bytes"] for cell in group),
            "seconds": statistics.mean(cell["seconds"] for cell in group),
        }
        for (budget, name), group in groups.items()
    ]


def table(gathered: Sequence[dict[str, Any]], float_loss: float) -> str:
    """Return the table as Markdown: a row a contestant, a column a budget."""
    budgets = sorted({row["budget"] for row in gathered}, reverse=True)
    names = list(dict.fromkeys(row["contestant"] for row in gathered))
    lines = [f"float: {float_loss:.4f} nats per token", "", "| | " + " | ".join(f"{b:g}" for b in budgets) + " |"]
    lines.append("|---" * (len(budgets) + 1) + "|")
    for name in names:
        by_budget = {row["budget"]: row for row in gathered if row["contestant"] == name}
        shown = [by_budget.get(budget) for budget in budgets]
        texts = ["–" if row is None else f"{row['loss']:.3f} ± {row['spread']:.3f}" for row in shown]
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return "\n".join(lines)
