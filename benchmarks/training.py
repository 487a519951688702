"""Training in few bits: accuracy against bit-operations, for every schedule, on the three nets of the source.

    python benchmarks/training.py --preset laptop --seeds 3        # minutes a cell; interrupted, it goes on
    python benchmarks/training.py --preset laptop --only 'numgeom' # cells whose name matches
    python benchmarks/training.py --preset laptop --summary        # only gather what is there

needs MNIST, Fashion-MNIST and CIFAR-10 ($GEOQUANT_DATA_DIR or the Hub). Source: docs/sources.md, "End-to-End QAT via
Numerical Geometry". A cell is one run: net, method, levels, rounding, seed; its result is one file, named by the hash
of its configuration. Methods see equal data and epochs, and may use the same levels: the source's 4, 8, 16, 32, or
fine ones.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from common import RESULTS, parser, write_results
from geoquant.data import load_images
from geoquant.evaluation import evaluate
from geoquant.models.zoo import ZOO
from geoquant.storage import canonical, digest, write_text
from geoquant.training import COARSE, FINE, Schedule, make_schedule
from geoquant.training.run import Settings, TrainingRun, train_

NETS = {
    "CNN-2": ("few_bits_cnn2", "mnist"),
    "CNN-4": ("few_bits_cnn4", "fashion_mnist"),
    "ResNet": ("few_bits_resnet", "cifar10"),
}
# Images, epochs and batch size for each net.
PRESETS = {
    "quick": {"CNN-2": (2000, 2, 64), "CNN-4": (1000, 2, 64), "ResNet": (500, 2, 64)},
    "laptop": {"CNN-2": (12000, 6, 64), "CNN-4": (8000, 5, 64), "ResNet": (6000, 5, 64)},
    "full": {"CNN-2": (60000, 50, 128), "CNN-4": (60000, 100, 128), "ResNet": (50000, 100, 128)},
}
STATIC = ("float32", "seed-amp", "amp", "uniform:fp16", "uniform:int16", "uniform:int8", "uniform:int4")
FINE_STATIC = tuple(f"uniform:int{bits}" for bits in (2, 3, 5, 6, 7))
PER_PASS = ("uniform:int4/int5", "uniform:int4/int6", "uniform:int5/int6")
ADAPTIVE = ("cpt", "gradient", "curvature", "combined", "seed18", "sound", "numgeom")
HISTOGRAM_STEP = 1000


@dataclass(frozen=True)
class Cell:
    """One training run.

    Attributes:
        options: of the schedule, as JSON.
        settings: images, epochs and batch size.
    """

    net: str
    method: str
    levels: str
    rounding: str
    seed: int
    options: str
    settings: tuple[int, int, int]
    split: str

    @property
    def name(self) -> str:
        """What `--only` matches."""
        return f"{self.net} {self.method} {self.levels} {self.rounding} {self.options} seed{self.seed}"

    def schedule(self) -> Schedule:
        """Make the schedule, with the levels that it may use."""
        options = json.loads(self.options)
        if self.method.partition(":")[0] in ADAPTIVE:
            options["levels"] = COARSE if self.levels == "coarse" else FINE
        return make_schedule(self.method, **options)


def methods() -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Yield method, levels, rounding and options of every row."""
    for name in STATIC:
        yield name, "coarse", "stochastic", {}
    for name in FINE_STATIC + PER_PASS:
        yield name, "fine", "stochastic", {}
    for levels in ("coarse", "fine"):
        for name in ADAPTIVE:
            yield name, levels, "stochastic", {}
    for curved, share in ((False, None), (True, 0.3), (True, 0.9)):
        yield "numgeom", "fine", "stochastic", {"curved": curved, **({} if share is None else {"share": share})}
    for name in ("uniform:int8", "uniform:int6", "uniform:int4", "numgeom"):
        yield name, "fine", "nearest", {}
    for bits in (8, 4):  # the optimizer's state and the stored weights as well
        for update in ("stochastic", "nearest"):
            yield f"uniform:int{bits}", "coarse", update, {"optimizer": f"int{bits}", "stored": f"int{bits}"}


def cells(arguments: argparse.Namespace) -> list[Cell]:
    sizes = PRESETS[arguments.preset]
    made = [
        Cell(net, *row[:3], seed, canonical(row[3]), sizes[net], arguments.split)
        for seed in range(arguments.seeds)
        for net in NETS
        for row in methods()
    ]
    return [cell for cell in made if re.search(arguments.only, cell.name)]


def data(cell: Cell) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Return training images, labels, and batches to judge on: the test set, or held-out training images."""
    train = load_images(NETS[cell.net][1], "train")
    train, held_out = train.split_off(5000, seed=0)
    judged = load_images(NETS[cell.net][1], "test") if cell.split == "test" else held_out
    if cell.settings[0] < len(train):
        train = train.split_off(cell.settings[0], seed=0)[1]
    inputs, labels = train.tensors("dataset")
    return inputs, labels, judged.batches(500, normalize="dataset")


def run_cell(cell: Cell) -> dict[str, Any]:
    """Train, judge, and return everything that tables and figures need."""
    inputs, labels, judged = data(cell)
    _, epochs, batch = cell.settings
    torch.manual_seed(cell.seed)
    model = ZOO[NETS[cell.net][0]]().to(memory_format=torch.channels_last)
    how = "nearest" if cell.rounding == "nearest" else "stochastic"
    settings = Settings(cell.method, epochs, batch, seed=cell.seed, backward=how, update=how, check_every=25)
    start = time.perf_counter()
    run = train_(model, inputs, labels, settings, cell.schedule())
    seconds = time.perf_counter() - start
    finite = all(bool(torch.isfinite(p).all()) for p in model.parameters())
    found = evaluate(model, judged) if finite else None
    return {
        "configuration": asdict(cell),
        "accuracy": 0.0 if found is None else 100 * found.accuracy.value,
        "cross_entropy": None if found is None else found.cross_entropy.value,
        "seconds": seconds,
        **history(run),
    }


def history(run: TrainingRun) -> dict[str, Any]:
    """Return costs, losses, precision over time, and what was predicted."""
    spent, log = run.precision.operations, run.precision.log.state_dict()
    for change in log["changes"]:
        change["reason"] = change["reason"][:160]
    losses = [loss if math.isfinite(loss) else None for loss in run.losses]
    return {
        "single": spent.total,
        "product": spent.total_product,
        "flops": sum(spent.flops.values()),
        "average_bits": spent.average_bits,
        "parts": asdict(spent),
        "state_bytes": run.precision.bytes["state"],
        "activation_bytes": run.precision.bytes["activations"],
        "anomalies": len(log["anomalies"]),
        "loss_at_histogram": losses[min(HISTOGRAM_STEP, len(losses)) - 1],
        "losses": losses[::10],
        "log": log,
        "practice": run.practice.state_dict(),
    }


def folder(preset: str) -> Path:
    return RESULTS / "training" / preset


def path_of(cell: Cell, preset: str) -> Path:
    return folder(preset) / f"{digest(asdict(cell))[:16]}.json"


def mean(values: list[float]) -> float:
    return statistics.mean(values)


def spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def gathered(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for every net and method of which all seeds are there, with what it saves against the baselines."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for cell in cells(arguments):
        path = path_of(cell, arguments.preset)
        if path.exists():
            key = (cell.net, cell.method, cell.levels, cell.rounding, cell.options)
            groups[key].append(json.loads(path.read_text()))
    rows = [row_of(key, found) for key, found in groups.items() if len(found) == arguments.seeds]
    for row in rows:
        compare(row, [other for other in rows if other["net"] == row["net"]])
    return rows


def row_of(key: tuple[str, ...], found: list[dict[str, Any]]) -> dict[str, Any]:
    losses = [one["loss_at_histogram"] for one in found]
    finite = [loss for loss in losses if loss is not None]
    practice = [one["practice"] for one in found]
    return {
        **dict(zip(("net", "method", "levels", "rounding", "options"), key, strict=True)),
        "accuracy": mean([one["accuracy"] for one in found]),
        "accuracy_spread": spread([one["accuracy"] for one in found]),
        "seeds": len(found),
        "single": mean([one["single"] for one in found]),
        "product": mean([one["product"] for one in found]),
        "average_bits": mean([one["average_bits"] for one in found]),
        "state_bytes": found[0]["state_bytes"],
        "anomalies": sum(one["anomalies"] for one in found),
        "failed_losses": len(losses) - len(finite),
        "loss_variance": spread(finite) ** 2 if finite else None,
        "promised": [sum(one["promised"][i] for one in practice) for i in (0, 1)],
        "unpromised": [sum(one["unpromised"][i] for one in practice) for i in (0, 1)],
        "rules": {
            name: sum(one["rules"].get(name, 0) for one in practice)
            for name in sorted({name for one in practice for name in one["rules"]})
        },
        "seconds": mean([one["seconds"] for one in found]),
    }


def compare(row: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Add accuracy beside float32 and the bit-operations saved, by both conventions.

    The best static or cyclic rival is the cheapest whose mean accuracy is at least the row's own, or within 0.3
    points of float32 where the row is.
    """
    plain = {one["method"]: one for one in rows if one["options"] == "{}" and one["rounding"] == "stochastic"}
    exact = plain.get("float32")
    if exact is None:
        return
    row["points_below_float"] = exact["accuracy"] - row["accuracy"]
    rivals = [one for one in rows if one["method"] == "cpt" or one["method"].startswith(("uniform", "amp", "seed-amp"))]
    limit = min(row["accuracy"], exact["accuracy"] - 0.3)
    equal = [one for one in rivals if one["accuracy"] >= limit and one is not row]
    for kind in ("single", "product"):
        names = {"float32": "float32", "seed-amp": "seed_amp", "amp": "amp"}
        saved = {short: 1 - row[kind] / plain[name][kind] for name, short in names.items() if name in plain}
        if equal:
            saved["best_static"] = 1 - row[kind] / min(one[kind] for one in equal)
        row[f"saved_{kind}"] = saved
    if equal:
        best = min(equal, key=lambda one: one["single"])
        row["best_static"] = f"{best['method']} {best['levels']} {best['rounding']}"


def show(rows: list[dict[str, Any]]) -> None:
    for row in sorted(rows, key=lambda one: (one["net"], one["single"])):
        saved = row.get("saved_single", {})
        shown = " ".join(f"{name} {100 * share:.0f}%" for name, share in saved.items())
        print(
            f"{row['net']:6s} {row['method']:20s} {row['levels']:6s} {row['rounding']:10s} {row['options']:24s} "
            f"{row['accuracy']:6.2f} ± {row['accuracy_spread']:.2f}  {row['average_bits']:5.2f} bits  "
            f"NaN {row['anomalies']}  {shown}"
        )


def main() -> None:
    made = parser(__doc__ or "", "training")
    made.add_argument("--preset", choices=sorted(PRESETS), default="laptop")
    made.add_argument("--seeds", type=int, default=3)
    made.add_argument("--only", default="", help="regular expression on the name of a cell")
    made.add_argument("--split", choices=("test", "validation"), default="test", help="what accuracy is measured on")
    made.add_argument("--summary", action="store_true", help="run nothing, gather what is there")
    arguments = made.parse_args()
    torch.set_num_threads(arguments.threads)
    todo = [cell for cell in cells(arguments) if not path_of(cell, arguments.preset).exists()]
    for number, cell in enumerate([] if arguments.summary else todo, 1):
        result = run_cell(cell)
        write_text(path_of(cell, arguments.preset), json.dumps(result, allow_nan=False) + "\n")
        print(
            f"{number}/{len(todo)} {cell.name}: {result['accuracy']:.2f} %, {result['average_bits']:.2f} bits, "
            f"{result['seconds']:.0f} s",
            flush=True,
        )
    rows = gathered(arguments)
    show(rows)
    if rows:
        write_results(arguments, {"rows": rows})


if __name__ == "__main__":
    main()
