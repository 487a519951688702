"""Do real nets do what the low-loss basin predicts? Four predictions, tables and figures from one command.

    python benchmarks/basin_paper.py --weights cifar10_resnet20.safetensors --stories stories260K

After arXiv 2606.09012, on the digits net (always), an MNIST net, ResNet-20 and stories260K (where data and weights are
given), over symmetric, affine, ternary and binary grids:

1. the gap between rounding and training on the grid vanishes on fine grids;
2. in training f(Q(w)) falls while f(w) need not;
3. the float net trained on with the same budget and then rounded does not give the gain;
4. second-order reconstruction (GPTQ) also leaves the basin at ultra-low bits.

Losses are cross-entropies on held-out data, in nats. Everything trains for --steps steps on the same batches with the
same optimizer, without a teacher, so that float training and training on the grid minimise the same loss. A fixed
budget says what this budget recovers, not what can be recovered.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from torch import nn

import geoquant as gq
from common import RESULTS, parser, write_results
from geoquant.cli.inputs import read_model
from geoquant.data import AugmentedImages, calibration_batches, evaluation_batches, load_images, load_text
from geoquant.models import load_tokenizer
from geoquant.models.zoo import digits_cnn, mlp3_mnist
from geoquant.progress import shown
from geoquant.quantize import quantize
from geoquant.recovery import Objective, Settings, recover_, training_mode_
from geoquant.recovery.feeding import Shuffled
from geoquant.storage import write_text
from geoquant.training import fit_classifier_

GRIDS = ("binary", "ternary", "int2", "int2:affine", "int3", "int3:affine", "int4", "int4:affine", "int6", "int8")
TRACED = ("ternary", "int2")


@dataclass(frozen=True)
class Case:
    """A float net, what it is trained on, and what it is judged on."""

    model: nn.Module
    source: Any
    test: Any
    rate: float


def digits_case(_: argparse.Namespace, seed: int) -> Case:
    """Return the digits net, trained here."""
    return _trained(digits_cnn, "digits", 20, seed)


def mnist_case(_: argparse.Namespace, seed: int) -> Case:
    """Return an MNIST net, trained here."""
    return _trained(mlp3_mnist, "mnist", 3, seed)


def _trained(build: Callable[[], nn.Module], data: str, epochs: int, seed: int) -> Case:
    torch.manual_seed(seed)
    model, images = build(), load_images(data, "train")
    fit_classifier_(model, *images.tensors(), epochs=epochs, seed=seed)
    source = AugmentedImages(images, 128, seed, padding=0, mirror=False)
    return Case(model, source, load_images(data, "test").batches(500), 1e-3)


def resnet_case(arguments: argparse.Namespace, seed: int) -> Case:
    """Return ResNet-20 with CIFAR-10."""
    model = read_model("geoquant.models.zoo:resnet20_cifar10", arguments.weights)
    source = AugmentedImages(load_images("cifar10", "train"), 128, seed, "imagenet")
    return Case(model, source, load_images("cifar10", "test").batches(500, normalize="imagenet"), 5e-4)


def stories_case(arguments: argparse.Namespace, seed: int) -> Case:
    """Return stories260K with TinyStories."""
    model, tokenizer = read_model(str(arguments.stories), None), load_tokenizer(arguments.stories)
    text = load_text("tinystories/v2_train_head.txt", "train")
    source = Shuffled(list(calibration_batches(text, tokenizer, 256, batch_size=16, seed=seed)), seed)
    judged = load_text("tinystories/v1_valid_head.txt", "validation")
    return Case(model, source, evaluation_batches(judged, tokenizer, 512, batch_size=8, limit=48), 5e-4)


def loss_of(model: nn.Module, case: Case) -> float:
    """Return the cross-entropy on the held-out data."""
    return gq.evaluate(model, case.test).cross_entropy.value


def train_float(case: Case, steps: int, seed: int) -> nn.Module:
    """Return the float net trained on, as `recover_` would train it without rounding."""
    model, settings = copy.deepcopy(case.model), Settings(steps=steps, rate=case.rate, seed=seed)
    optimizer, objective = torch.optim.AdamW(model.parameters(), lr=case.rate, weight_decay=0), Objective()
    training_mode_(model, settings)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = case.rate * settings.share(step, steps)
        optimizer.zero_grad(set_to_none=True)
        objective(model, case.source.batch(*divmod(step, len(case.source)))).backward()
        optimizer.step()
    return model.eval()


def measure(case: Case, grid: str, further: nn.Module, steps: int, seed: int) -> dict[str, Any]:
    """Return the losses of one net on one grid, and the course of training."""
    plan = gq.uniform_plan(case.model, grid)
    calibration = [case.source.batch(0, index) for index in range(min(4, len(case.source)))]
    rounded = quantize(case.model, plan, calibration, rounding="nearest", norms="none")
    trained = copy.deepcopy(rounded)
    options = {"rate": case.rate, "step_rate": 1e-3, "free_rate": case.rate, "seed": seed}
    result = recover_(trained, plan, case.source, steps=steps, method="ste", **options)
    return {
        "float": loss_of(case.model, case),
        "nearest": loss_of(rounded, case),
        "gptq": loss_of(quantize(case.model, plan, calibration), case),
        "float trained, then nearest": loss_of(
            quantize(further, plan, calibration, rounding="nearest", norms="none"), case
        ),
        "float trained, then gptq": loss_of(quantize(further, plan, calibration), case),
        "trained on the grid": loss_of(trained, case),
        "trace": [
            [each.step, each.latent_loss, each.quantized_loss, each.inward_share] for each in result.trace.points
        ],
    }


def predictions(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return, per net, figures for the four predictions; a rise is a loss above float."""
    found = []
    for net in dict.fromkeys(row["net"] for row in rows):
        own = {row["grid"]: row for row in rows if row["net"] == net}
        gaps = {grid: row["nearest"] - row["trained on the grid"] for grid, row in own.items()}
        traced = [row["trace"] for row in own.values() if row["grid"] in TRACED]
        falls = [_share_falling([point[2] for point in trace]) for trace in traced]
        coarse = own.get("int2", next(iter(own.values())))
        found.append(
            {
                "net": net,
                "gap by grid": gaps,
                "share of looks at which f(Q(w)) fell": falls,
                "f(w) at the end minus at the beginning": [trace[-1][1] - trace[0][1] for trace in traced],
                "f(Q(w)) at the end minus at the beginning": [trace[-1][2] - trace[0][2] for trace in traced],
                f"rise at {coarse['grid']}": {name: coarse[name] - coarse["float"] for name in coarse if name in LINES},
            }
        )
    return found


def _share_falling(values: list[float]) -> float:
    """Return at which share of the steps from one value to the next it falls."""
    return sum(after < before for before, after in itertools.pairwise(values)) / (len(values) - 1)


LINES = {
    "nearest": ("#D55E00", "o"),
    "gptq": ("#E69F00", "s"),
    "float trained, then nearest": ("#999999", "v"),
    "trained on the grid": ("#0072B2", "D"),
}


def draw(rows: list[dict[str, Any]], net: str, folder: Path) -> None:
    """Draw one net: the rise of the loss over grids, and the course of training on coarse grids."""
    mpl.use("Agg")
    own = [row for row in rows if row["net"] == net]
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, (color, mark) in LINES.items():
        rises = [max(row[name] - row["float"], 1e-5) for row in own]
        left.semilogy([row["grid"] for row in own], rises, marker=mark, color=color, label=name)
    left.set(ylabel="loss above float (nats)", title=f"{net}: rounding and training on the grid")
    left.tick_params(axis="x", rotation=45)
    left.legend(frameon=False)
    for row, style in zip((row for row in own if row["grid"] in TRACED), ("-", "--"), strict=False):
        steps = [point[0] for point in row["trace"]]
        for place, color, words in ((2, "#0072B2", "f(Q(w))"), (1, "#D55E00", "f(w)")):
            values = [point[place] for point in row["trace"]]
            right.plot(steps, values, style, color=color, label=f"{words}, {row['grid']}")
    right.set(xlabel="steps", ylabel="training loss (nats)", yscale="log", title="the course of training")
    right.legend(frameon=False)
    figure.savefig(folder / f"basin_paper_{net.lower().replace('-', '').replace(' ', '_')}.png", dpi=110)


def main() -> None:
    made = parser(__doc__ or "", "basin_paper")
    made.add_argument("--weights", type=Path, default=None, help="ResNet-20's weights; without them it is left out")
    made.add_argument("--stories", type=Path, default=None, help="stories260K's folder; without it it is left out")
    made.add_argument("--nets", default="digits,mnist,ResNet-20,stories260K", help="which nets")
    made.add_argument("--grids", default=",".join(GRIDS))
    made.add_argument("--steps", type=int, default=300)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--figures", type=Path, default=RESULTS, help="folder of the figures")
    made.add_argument("--cells", type=Path, default=Path("basin_paper_cells"), help="finished cells")
    arguments = made.parse_args()
    torch.set_num_threads(arguments.threads)
    makers = {"digits": digits_case, "mnist": mnist_case}
    makers |= {"ResNet-20": resnet_case} if arguments.weights is not None else {}
    makers |= {"stories260K": stories_case} if arguments.stories is not None else {}
    rows = []
    for net in [name for name in arguments.nets.split(",") if name in makers]:
        case, further = None, None
        for grid in arguments.grids.split(","):
            file = arguments.cells / f"{net}, {grid}, {arguments.steps} steps, seed {arguments.seed}.json"
            if not file.exists():
                with shown():
                    case = case or makers[net](arguments, arguments.seed)
                    further = further or train_float(case, arguments.steps, arguments.seed)
                    write_text(file, json.dumps(measure(case, grid, further, arguments.steps, arguments.seed)))
            rows.append({"net": net, "grid": grid, **json.loads(file.read_text())})
            losses = {name: round(rows[-1][name], 4) for name in ("float", *LINES)}
            print(net, grid, losses, flush=True)
        draw(rows, net, arguments.figures)
    write_results(arguments, {"predictions": predictions(rows), "rows": rows})


if __name__ == "__main__":
    main()
