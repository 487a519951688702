"""geoquant beside other tools: the same net, images, machine and delivered bytes, in one run.

    python benchmarks/peers/environments.py --folder peers
    python benchmarks/peers/run.py --weights cifar10_resnet20.safetensors --folder peers

needs CIFAR-10 ($GEOQUANT_DATA_DIR or the Hub). ResNet-20, weights only, every layer counted. Calibration: training
images without labels, the same for everyone; figures: all test images. What is measured is kept in the folder, so
that a rerun goes on where the last one stopped. See docs/peers.md.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from comparison import Cell, Contestant, Result, delivered_bits, finished, rows, table, with_budgets
from driving import LayerFormat
from environments import python_of

import geoquant.models.zoo.resnet_cifar as net_module
from common import parser, provenance, write_results
from geoquant.cli.inputs import Normalize, read_batches, read_model
from geoquant.data import fingerprint
from geoquant.evaluation import kl_per_sample
from geoquant.models import take_inventory

HERE = Path(__file__).resolve().parent
NET = "resnet20_cifar10"
MODEL = f"geoquant.models.zoo:{NET}"
TIMEOUT = 3600


def contestants(arguments: Any) -> list[Contestant]:
    """List who takes part; settings that are not named are the peer's defaults."""
    search = {"score_images": arguments.score_images}
    found = [
        Contestant(f"geoquant, {effort}", None, "drive_geoquant.py", geoquant_options(arguments, effort))
        for effort in arguments.efforts
    ]
    for method in ("gradient", "kl_div"):
        options = {"method": method, "algorithm": "mse", **search}
        found.append(Contestant(f"ModelOpt {method}, MSE scales", "modelopt", "drive_modelopt.py", options))
    for activations in (8, 32):
        suffix = "8-bit activations" if activations == 8 else "weights only"
        options = {"activations": activations, "epochs": 0, **search}
        found.append(Contestant(f"MCT, {suffix}", "mct", "drive_mct.py", options))
    options = {"activations": 32, "epochs": arguments.mct_epochs, **search}
    found.append(Contestant(f"MCT + GPTQ, {arguments.mct_epochs} epochs, weights only", "mct", "drive_mct.py", options))
    for width in (2, 4):
        for optimizer in ("max", "hqq"):
            options = {"width": width, "optimizer": optimizer}
            found.append(Contestant(f"quanto {optimizer}, int{width}", "quanto", "drive_quanto.py", options, False))
    for width in (2, 3, 4):
        found.append(Contestant(f"HQQ, int{width}", "hqq", "drive_hqq.py", {"width": width}, False))
    found.append(Contestant("AutoRound", "auto_round", "drive_auto_round.py", {"width": 4}, False))
    wanted = [one for one in found if (one.environment or "geoquant") in arguments.only]
    return [one for one in wanted if re.search(arguments.names, one.name)]


def geoquant_options(arguments: Any, effort: str) -> dict[str, Any]:
    """Return what geoquant's own driver is told; None leaves the choice to geoquant."""
    names = ("rounding", "norms", "predictor")
    return {"effort": effort, **{name: getattr(arguments, name) for name in names}}


class Bench:
    """The files that every driver reads, and the judge of what it writes."""

    def __init__(self, arguments: Any) -> None:
        self.arguments = arguments
        self.folder: Path = arguments.folder.resolve()
        self.weights: Path = arguments.weights.resolve()
        self.model = read_model(MODEL, self.weights)
        self.inventory = take_inventory(self.model)
        test = self._batches("test", arguments.test_images, None)
        self.labels = torch.cat([labels for _, labels in test])
        self.digest = fingerprint(test)[:12]
        self._save("test", test)
        with torch.no_grad():
            self.reference = torch.cat([self.model(images) for images, _ in test])

    def _batches(self, split: str, limit: int | None, seed: int | None) -> list[Any]:
        return list(read_batches("cifar10", split, Normalize.imagenet, self.weights, 250, limit, seed))

    def _save(self, name: str, batches: list[Any]) -> Path:
        path = self.folder / "images" / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"images": torch.cat([images for images, _ in batches]).contiguous()}, str(path))
        return path

    def calibrate(self, seed: int) -> None:
        """Write the calibration images of one seed: training images, and their labels are dropped."""
        self._save(f"calibration-{seed}", self._batches("train", self.arguments.images, seed))

    def float_accuracy(self) -> float:
        """Return the accuracy of the float net, in per cent."""
        return self._accuracy(self.reference)

    def _accuracy(self, logits: torch.Tensor) -> float:
        return 100 * float((logits.argmax(1) == self.labels).double().mean())

    def measure(self, cell: Cell) -> Result:
        """Run one driver and judge its logits; a driver that fails gives its last words as the reason."""
        environment = cell.contestant.environment
        python = Path(sys.executable) if environment is None else python_of(self.folder, environment)
        if not python.exists():
            return {"reason": self._why_missing(str(environment))}
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            job = Path(scratch) / "job.json"
            job.write_text(json.dumps(self._job(cell)))
            command = [str(python), str(HERE / cell.contestant.driver), str(job)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT)
            except subprocess.TimeoutExpired:
                return {"reason": f"not done after {TIMEOUT} seconds"}
            if done.returncode:
                return {"reason": last_words(done.stderr)}
            return self._judged(Path(scratch), cell)

    def _why_missing(self, environment: str) -> str:
        failures = self.folder / "failures.json"
        known = json.loads(failures.read_text()) if failures.exists() else {}
        return str(known.get(environment, f"there is no environment '{environment}'; run environments.py"))

    def _job(self, cell: Cell) -> dict[str, Any]:
        images = self.folder / "images"
        return {
            "net_file": str(Path(net_module.__file__).resolve()),
            "net": NET,
            "weights": str(self.weights),
            "calibration": str(images / f"calibration-{cell.seed}.safetensors"),
            "test": str(images / "test.safetensors"),
            "budget": cell.budget,
            "seed": cell.seed,
            "threads": self.arguments.threads,
            "options": dict(cell.contestant.options),
        }

    def _judged(self, scratch: Path, cell: Cell) -> Result:
        answer = json.loads((scratch / "answer.json").read_text())
        logits = load_file(scratch / "logits.safetensors")["logits"]
        layers = {name: LayerFormat(**layer) for name, layer in answer["layers"].items()}
        bits = delivered_bits(self.inventory, layers)
        if abs(bits - answer["average_bits"]) > 1e-9:
            return {"reason": f"the driver counts {answer['average_bits']:.6f} bits, the plan {bits:.6f}"}
        if cell.budget is not None and bits > cell.budget + 1e-9:
            return {"reason": f"delivers {bits:.4f} average bits for a budget of {cell.budget:g}"}
        divergence, _ = kl_per_sample(self.reference, logits)
        return {
            "average_bits": bits,
            "accuracy": self._accuracy(logits),
            "kl": float(divergence.mean()),
            "seconds": answer["seconds"],
            "widths": {name: layer.bits for name, layer in layers.items()},
            "notes": answer["notes"],
        }


def last_words(text: str) -> str:
    """Return the exception's line, or else the last that says something, without folders of this machine."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line)]
    words = [*lines, *raised][-1] if lines else "it ended without a word"
    return " ".join(Path(word).name if word.startswith("/") else word for word in words.split())[:200]


def fixed_cells(bench: Bench, arguments: Any) -> list[Cell]:
    """List the contestants that choose no widths; they look at weights only, so one run each is enough."""
    return [Cell(one, None, 0, data_of(bench)) for one in contestants(arguments) if not one.searches]


def searched_cells(bench: Bench, arguments: Any, extra: list[float]) -> list[Cell]:
    """List the others at every budget; geoquant also at `extra`, what the contestants without a search deliver.

    There its first effort on the first calibration set is enough: those sizes are orientation.
    """
    searching = [one for one in contestants(arguments) if one.searches]
    made = []
    for seed, one in itertools.product(range(arguments.seeds), searching):
        first = seed == 0 and one is searching[0] and one.environment is None
        budgets = [*arguments.budgets, *(extra if first else [])]
        made += [Cell(one, budget, seed, data_of(bench)) for budget in budgets]
    return made


def data_of(bench: Bench) -> str:
    """Say which images a cell has seen."""
    return f"{bench.digest}, {bench.arguments.images} images"


def measured(bench: Bench, wanted: list[Cell]) -> list[tuple[Cell, Result]]:
    """Measure what is not kept from an earlier run, saying how it goes."""
    results = []
    for cell in wanted:
        result, fresh = finished(bench.folder / "cells", cell, lambda cell=cell: bench.measure(cell))
        results.append((cell, result))
        print(f"{cell.key}{'' if fresh else ' (kept)'}: {result.get('accuracy', result.get('reason'))}", flush=True)
    return results


def main() -> None:
    made = parser(__doc__ or "", "peers")
    made.add_argument("--weights", type=Path, required=True)
    made.add_argument("--folder", type=Path, required=True, help="environments, images and finished cells")
    made.add_argument("--budgets", type=float, nargs="+", default=[4.0, 3.0, 2.5, 2.0], help="inclusive average bits")
    made.add_argument("--seeds", type=int, default=3, help="calibration sets")
    made.add_argument("--images", type=int, default=2048, help="calibration images")
    made.add_argument("--score-images", type=int, default=512, help="of these, for the peers' sensitivity scores")
    made.add_argument("--test-images", type=int, default=None, help="fewer test images, for a quick look")
    made.add_argument("--efforts", nargs="+", default=["fast", "balanced", "best"], help="of geoquant")
    made.add_argument("--rounding", default=None, help="geoquant's rounding, in place of the effort's")
    made.add_argument("--norms", default=None, help="geoquant's correction of norms, in place of the effort's")
    made.add_argument("--predictor", default=None, help="geoquant's predictor; its default when not given")
    made.add_argument("--mct-epochs", type=int, default=10, help="of MCT's gradient-based rounding")
    everyone = ["geoquant", "modelopt", "mct", "quanto", "hqq", "auto_round"]
    made.add_argument("--only", nargs="+", choices=everyone, default=everyone)
    made.add_argument("--names", default="", help="only contestants in whose name this regular expression is found")
    arguments = made.parse_args()
    torch.set_num_threads(arguments.threads)
    bench = Bench(arguments)
    for seed in range(arguments.seeds):
        bench.calibrate(seed)
    results = with_budgets(measured(bench, fixed_cells(bench, arguments)))
    extra = sorted({cell.budget for cell, _ in results if cell.budget is not None})
    results += measured(bench, searched_cells(bench, arguments, extra))
    gathered = rows(results)
    print(table(gathered))
    born = provenance(arguments)
    born["command"] = born["command"].replace("benchmarks/run.py", "benchmarks/peers/run.py")
    each = [{"contestant": cell.contestant.name, "budget": cell.budget, "seed": cell.seed, **r} for cell, r in results]
    write_results(arguments, {"float": bench.float_accuracy(), "rows": gathered, "cells": each, "provenance": born})


if __name__ == "__main__":
    main()
