"""What training on the grids brings back: ResNet-20 on CIFAR-10 and stories260K, against two controls.

    python benchmarks/recovery.py --weights cifar10_resnet20.safetensors --stories stories260K

needs CIFAR-10 and TinyStories ($GEOQUANT_DATA_DIR). Vision: 2-bit and ternary weights, W4A4, W3A3, W2A2, each with the
first and last layer at 8 bits and with everything at the stated width; the start is --effort's rounding on 512
training images, the float net teaches (no labels), images are cropped and mirrored. Language: weights of 3 and 2 bits.
Controls with as many steps on the same batches: the float net trained on and then rounded in the same way, and
training on the grid from random weights. Training may take --minutes of processor time, all threads together: after a
few steps that do not count it is decided how many fit; what rounding took before stands beside it. Every cell is one
file in --cells, so the command goes on where it was interrupted, within a cell too. Training looks at the train split
alone; test images and the validation text are for the figures. Settings can be changed with --set, and were chosen with
--held-out, which judges on training images that are not trained on: a temperature of 4 for images; twice the
default rates with activations of 2 and 3 bits, and less than them where 4-bit rounding leaves little to mend. On a
processor without units for bf16, add --set arithmetic=float32.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import geoquant as gq
from common import parser, write_results
from geoquant.cli.inputs import read_model
from geoquant.data import AugmentedImages, calibration_batches, evaluation_batches, load_images, load_text
from geoquant.models import load_tokenizer
from geoquant.plan import Plan
from geoquant.progress import shown
from geoquant.quantize import quantize
from geoquant.recovery import Objective, Settings, recover_
from geoquant.recovery.feeding import Shuffled
from geoquant.storage import write_text

VISION = {
    "W2": ("int2:mse-signed", None),
    "ternary": ("ternary", None),
    "W4A4": ("int4:mse-signed", "int4:affine"),
    "W3A3": ("int3:mse-signed", "int3:affine"),
    "W2A2": ("int2:mse-signed", "int2:affine"),
}
TARGETS = {"W2": 91.0, "ternary": 90.3, "W4A4": 91.5, "W3A3": 91.0, "W2A2": 88.5}
LANGUAGE = {"W3": "int3:mse-signed", "W2": "int2:mse-signed"}
VISION_SETTINGS: dict[str, Any] = {"temperature": 4.0, "arithmetic": "bf16"}
FASTER: dict[str, Any] = {"rate": 1e-3, "free_rate": 1e-3}
GENTLER: dict[str, Any] = {"rate": 3e-4, "free_rate": 3e-4}
RATES = {"W4A4": GENTLER, "W3A3": FASTER, "W2A2": FASTER}
"""Where activations are quantized too."""
METHODS = ("recovered", "float trained, then rounded", "trained from random weights")
_TIMED, _SPARE = 6, 0.9  # steps that are timed; share of the minutes that steps may take


@dataclass(frozen=True)
class Cell:
    """One run."""

    net: str
    scheme: str
    variant: str
    method: str
    seed: int
    effort: str = "balanced"

    @property
    def name(self) -> str:
        """Its name, and that of its file."""
        start = "" if self.effort == "balanced" else f"from {self.effort}"
        parts = (self.net, self.scheme, self.variant, self.method, start, f"seed {self.seed}")
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True)
class Task:
    """A net, the batches it is trained and judged on, and how a random one is made."""

    model: nn.Module
    source: Any
    test: Any
    fresh: Callable[[], nn.Module]


def vision_task(arguments: argparse.Namespace, seed: int) -> Task:
    """Return ResNet-20 with CIFAR-10."""
    spec = "geoquant.models.zoo:resnet20_cifar10"
    images = load_images("cifar10", "train")
    if arguments.held_out:
        images, judged = images.split_off(arguments.held_out, seed)
    else:
        judged = load_images("cifar10", "test")
    source = AugmentedImages(images, arguments.batch, seed, "imagenet")
    test = judged.stream(250, arguments.test_images, None, "imagenet")
    return Task(read_model(spec, arguments.weights), source, test, lambda: read_model(spec, None))


def language_task(arguments: argparse.Namespace, seed: int) -> Task:
    """Return stories260K with TinyStories; trained on one release's head, judged on another's validation stories."""
    model, tokenizer = read_model(str(arguments.stories), None), load_tokenizer(arguments.stories)
    text = load_text("tinystories/v2_train_head.txt", "train")
    source = Shuffled(list(calibration_batches(text, tokenizer, 256, batch_size=16, seed=seed)), seed)
    judged = load_text("tinystories/v1_valid_head.txt", "validation")
    test = evaluation_batches(judged, tokenizer, 512, batch_size=8, limit=arguments.test_windows)
    return Task(model, source, test, lambda: _shaken(model, seed))


def _shaken(model: nn.Module, seed: int) -> nn.Module:
    """Return a copy of a transformer with random weights."""
    made = copy.deepcopy(model)
    torch.manual_seed(seed)
    made.apply(made._init_weights)
    return made


def plan_of(cell: Cell, model: nn.Module) -> Plan:
    """Return the grids of a cell."""
    if cell.net != "ResNet-20":
        return gq.uniform_plan(model, LANGUAGE[cell.scheme])
    weights, inputs = VISION[cell.scheme]
    ends = dict.fromkeys(("conv1", "linear"), "int8") if cell.variant == "ends at 8 bits" else {}
    plan = gq.uniform_plan(model, weights, ends)
    if inputs is None:
        return plan
    return plan.with_activations({"re:.*": inputs, **dict.fromkeys(ends, "int8:affine")})


def settings_of(cell: Cell) -> dict[str, Any]:
    """Return what differs from the defaults of `recover_`.

    >>> settings_of(Cell("stories260K", "W2", "", "recovered", 1))
    {'seed': 1}
    """
    if cell.net != "ResNet-20":
        return {"seed": cell.seed}
    return {"seed": cell.seed, **VISION_SETTINGS, **RATES.get(cell.scheme, {})}


def steps_that_fit(task: Task, cell: Cell, plan: Plan, options: dict[str, Any], arguments: argparse.Namespace) -> int:
    """Return how many steps the minutes allow, by timing a few; decided once per cell, so that it can be resumed."""
    decided = arguments.cells / f"{cell.name}.steps"
    if arguments.steps is not None:
        return int(arguments.steps)
    if decided.exists():
        return int(decided.read_text())
    seconds = []
    for count in (1, 1, 1 + _TIMED):  # the first also makes what is kept for all steps
        model = quantize(task.model, plan, _calibration(task), effort="fast") if cell.method != METHODS[1] else None
        start = time.process_time()
        if model is None:
            _train_float(copy.deepcopy(task.model), task, count, options)
        else:
            recover_(model, plan, task.source, teacher=task.model, steps=count, trace_every=0, reestimate=0, **options)
        seconds.append(time.process_time() - start)
    each = max(1e-3, (seconds[2] - seconds[1]) / _TIMED)
    steps = max(1, int(_SPARE * 60 * arguments.minutes / each))
    write_text(decided, str(steps))
    return steps


def _calibration(task: Task) -> list[Any]:
    """Return batches of the training data, enough for 512 images."""
    return [task.source.batch(0, index) for index in range(min(4, len(task.source)))]


def _train_float(model: nn.Module, task: Task, steps: int, options: dict[str, Any]) -> nn.Module:
    """Train the float net on labels with the optimizer, rates and schedule of the recovery."""
    settings = Settings(steps=steps, **options)
    optimizer, objective = torch.optim.AdamW(model.parameters(), lr=settings.rate, weight_decay=0), Objective()
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * settings.share(step, steps)
        optimizer.zero_grad(set_to_none=True)
        objective(model, task.source.batch(*divmod(step, len(task.source)))).backward()
        optimizer.step()
    return model.eval()


def run(cell: Cell, task: Task, arguments: argparse.Namespace) -> dict[str, Any]:
    """Carry out one cell; return its figures."""
    plan = plan_of(cell, task.model)
    options = {**settings_of(cell), **arguments.set}
    steps = steps_that_fit(task, cell, plan, options, arguments)

    def rounded(model: nn.Module) -> tuple[nn.Module, float]:
        start = time.process_time()
        return quantize(model, plan, _calibration(task), effort=cell.effort), time.process_time() - start

    begun, rounding = rounded(task.model)
    before, own = gq.evaluate(begun, task.test), gq.evaluate(task.model, task.test)
    start, busy, trace = time.perf_counter(), time.process_time(), None
    if cell.method == METHODS[1]:
        model, _ = rounded(_train_float(copy.deepcopy(task.model), task, steps, options))
    else:
        model = begun if cell.method == METHODS[0] else rounded(task.fresh())[0]
        trace = _train_quantized(model, plan, cell, task, steps, options, arguments)
    wall, cpu = time.perf_counter() - start, time.process_time() - busy
    after = gq.evaluate(model, task.test)
    return {
        "steps": steps,
        "rounding_minutes": round(rounding / 60, 2),
        "minutes": round(wall / 60, 2),
        "cpu_minutes": round(cpu / 60, 2),
        "bytes": plan.bytes,
        "accuracy": {name: 100 * each.accuracy.value for name, each in _named(own, before, after)},
        "cross_entropy": {name: each.cross_entropy.value for name, each in _named(own, before, after)},
        "settings": options,
        "trace": trace,
    }


def _train_quantized(
    model: nn.Module,
    plan: Plan,
    cell: Cell,
    task: Task,
    steps: int,
    options: dict[str, Any],
    arguments: argparse.Namespace,
) -> list[list[float]]:
    """Train on the grids, resuming what was interrupted; return steps and losses along the way."""
    more: dict[str, Any] = {"teacher": task.model}
    if cell.method == METHODS[2]:
        # A teacher would lend its weights to the random net, so that learns from labels alone, at higher rates.
        more = {"rate": 3e-3, "free_rate": 3e-3, "temperature": 1.0}
    kept = {"checkpoint": arguments.cells / (cell.name + ".checkpoint"), "checkpoint_every": 200, "resume": True}
    result = recover_(model, plan, task.source, steps=steps, **kept, **{**options, **more})
    return [[point.step, point.latent_loss, point.quantized_loss] for point in result.trace.points]


def _named(own: Any, before: Any, after: Any) -> list[tuple[str, Any]]:
    return [("float", own), ("rounded", before), ("result", after)]


def cells(arguments: argparse.Namespace) -> list[Cell]:
    """Return all runs, the recoveries first."""
    found = []
    for method in METHODS:
        for seed in range(arguments.seeds):
            if arguments.weights is not None:
                found += [
                    Cell("ResNet-20", scheme, variant, method, seed, arguments.effort)
                    for scheme in VISION
                    for variant in ("ends at 8 bits", "everything")
                ]
            if arguments.stories is not None:
                found += [Cell("stories260K", scheme, "", method, seed, arguments.effort) for scheme in LANGUAGE]
    return [cell for cell in found if re.search(arguments.only, cell.name)]


def summary(results: dict[Cell, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per net, scheme, variant, method and effort: means over seeds and their spread."""
    grouped: dict[Cell, list[dict[str, Any]]] = {}
    for cell, result in results.items():
        grouped.setdefault(replace(cell, seed=0), []).append(result)
    return [_row(cell, members) for cell, members in grouped.items()]


def _row(cell: Cell, members: list[dict[str, Any]]) -> dict[str, Any]:
    def mean(figure: str, which: str) -> float:
        return statistics.mean(member[figure][which] for member in members)

    accuracies = [member["accuracy"]["result"] for member in members]
    losses = [mean("cross_entropy", which) for which in ("float", "rounded", "result")]
    return {
        **{name: getattr(cell, name) for name in ("net", "scheme", "variant", "method", "effort")},
        "seeds": len(members),
        **{f"accuracy_{which}": round(mean("accuracy", which), 2) for which in ("float", "rounded", "result")},
        "spread": round(statistics.stdev(accuracies), 2) if len(accuracies) > 1 else 0.0,
        "target": TARGETS.get(cell.scheme) if cell.net == "ResNet-20" else None,
        "lost_loss_recovered": round((losses[1] - losses[2]) / (losses[1] - losses[0]), 3),
        "bytes": members[0]["bytes"],
        "steps": round(statistics.mean(member["steps"] for member in members)),
        **{
            figure: round(statistics.mean(member[figure] for member in members), 1)
            for figure in ("minutes", "cpu_minutes", "rounding_minutes")
        },
    }


def _pair(word: str) -> tuple[str, Any]:
    name, _, value = word.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def read_arguments() -> argparse.Namespace:
    made = parser(__doc__ or "", "recovery")
    made.add_argument("--weights", type=Path, default=None, help="ResNet-20's weights; without them no vision")
    made.add_argument("--stories", type=Path, default=None, help="stories260K's folder; without it no language")
    made.add_argument("--cells", type=Path, default=Path("recovery_cells"), help="finished cells and checkpoints")
    made.add_argument("--only", default="", help="only cells in whose name this regular expression is found")
    made.add_argument("--seeds", type=int, default=3)
    made.add_argument("--minutes", type=float, default=19.0, help="of training per cell, processor time")
    made.add_argument("--steps", type=int, default=None, help="instead of minutes")
    made.add_argument("--effort", default="balanced", help="of the rounding that training starts from")
    made.add_argument("--batch", type=int, default=128)
    made.add_argument("--set", type=_pair, nargs="*", default=[], metavar="NAME=VALUE", help="fields of Settings")
    made.add_argument("--held-out", type=int, default=0, help="judge on so many training images: to choose settings")
    made.add_argument("--test-images", type=int, default=None, help="fewer test images, for a quick look")
    made.add_argument("--test-windows", type=int, default=None, help="fewer windows of text")
    arguments = made.parse_args()
    arguments.set = dict(arguments.set)
    return arguments


def main() -> None:
    arguments = read_arguments()
    torch.set_num_threads(arguments.threads)
    results = {}
    for cell in cells(arguments):
        file = arguments.cells / f"{cell.name}.json"
        if not file.exists():
            make = vision_task if cell.net == "ResNet-20" else language_task
            with shown():
                found = run(cell, make(arguments, cell.seed), arguments)
            write_text(file, json.dumps(found, indent=1))
        results[cell] = json.loads(file.read_text())
        accuracy = results[cell]["accuracy"]
        print(f"{cell.name}: {accuracy['rounded']:.2f} → {accuracy['result']:.2f} %", flush=True)
    write_results(arguments, {"rows": summary(results)})


if __name__ == "__main__":
    main()
