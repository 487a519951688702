"""`geoquant train`: a training run in few bits, with its cost and the reason of every change of precision."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from safetensors.torch import save_file
from torch import Tensor, nn

from geoquant import progress
from geoquant.cli.app import app
from geoquant.cli.inputs import (
    AsJson,
    Data,
    Model,
    NormalizeOption,
    Seed,
    Weights,
    fast,
    fitting,
    read_batches,
    read_model,
    say,
    show,
)
from geoquant.errors import DataError
from geoquant.evaluation import evaluate
from geoquant.models import stored_state
from geoquant.plan import align
from geoquant.storage import Json, atomic_path, write_document
from geoquant.training import FINE, SCHEDULES, make_schedule
from geoquant.training.precision import sorted_levels
from geoquant.training.run import Settings, TrainingRun, train_

ScheduleOption = Annotated[
    str,
    typer.Option(
        help=f"{', '.join(SCHEDULES)}. `uniform:int6` gives all layers one level, `uniform:int4/int6` forward and "
        "backward."
    ),
]
Levels = Annotated[
    str | None,
    typer.Option(help=f"Levels that an adaptive schedule may use: some of {', '.join(FINE)}, with commas."),
]


@app.command("train")
def train_command(
    model: Model,
    data: Data,
    output: Annotated[Path, typer.Option(help="Folder for model.safetensors, run.json and the checkpoint.")],
    schedule: ScheduleOption = "numgeom",
    levels: Levels = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training data.")] = 3,
    learning_rate: Annotated[float, typer.Option(help="Peak of the one-cycle schedule.")] = 0.05,
    optimizer: Annotated[str, typer.Option(help="sgd (momentum 0.9) or adam.")] = "sgd",
    batch_size: Annotated[int, typer.Option(min=1, help="Samples per step.")] = 64,
    images: Annotated[int | None, typer.Option(min=1, help="Train on so many samples only.")] = None,
    weights: Weights = None,
    normalize: NormalizeOption = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Train a model in few bits: forward, backward and optimizer, in the precision that a schedule decides on the way.

    Every linear and convolutional layer computes in simulated low precision. The run keeps a checkpoint after every
    epoch: interrupted and started again, it ends in the same bits. Reported are the accuracy in float32, the
    bit-operations beside those of float32, and why precision changed.

    Examples: `geoquant train geoquant.models.zoo:digits_cnn --data digits --schedule numgeom --epochs 8 --output run/`

    `geoquant train mine.py:model --data cifar10 --schedule uniform:int6 --output baseline/`
    """
    if optimizer not in ("sgd", "adam"):
        raise typer.BadParameter(f"there is no optimizer '{optimizer}' here; choose sgd or adam")
    kind: Literal["sgd", "adam"] = "adam" if optimizer == "adam" else "sgd"
    options = {} if levels is None else {"levels": sorted_levels(tuple(part.strip() for part in levels.split(",")))}
    decided = make_schedule(schedule, **options)
    torch.manual_seed(seed)
    net = fast(read_model(model, weights))
    inputs, labels = gathered(read_batches(data, "train", normalize, weights, 1000, images, seed))
    test = fitting(net, read_batches(data, "test", normalize, weights, 250))
    name = schedule if levels is None else f"{schedule} {levels}"
    settings = Settings(name, epochs, batch_size, learning_rate, kind, seed=seed, check_every=25)
    with progress.shown():
        run = train_(net, inputs, labels, settings, decided, output)
        measured = evaluate(net, test)
    path = save_weights(net, output)
    document = run_document(run, settings, 100 * measured.accuracy.value)
    write_document(output / "run.json", "training-run", 1, document)
    say(f"wrote {path} and {output / 'run.json'}")
    show(run_text(run, document), document, as_json)


def gathered(batches: Any) -> tuple[Tensor, Tensor]:
    """Return all inputs and labels.

    Raises:
        DataError: batches are not (inputs, labels) pairs of tensors.
    """
    pairs = list(batches)
    if not all(isinstance(one, (tuple, list)) and len(one) == 2 and isinstance(one[0], Tensor) for one in pairs):
        raise DataError(
            "`geoquant train` takes (inputs, labels) batches; for others write a loop around geoquant.training.adaptive"
        )
    inputs, labels = torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])
    return (inputs.contiguous(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs), labels


def save_weights(net: nn.Module, output: Path) -> Path:
    """Write the trained weights, float32."""
    path = output / "model.safetensors"
    with atomic_path(path) as temporary:
        save_file({name: each.detach().contiguous() for name, each in stored_state(net).items()}, temporary)
    return path


def run_document(run: TrainingRun, settings: Settings, accuracy: float) -> Json:
    """Return everything that is known of a run, as plain values."""
    spent = run.precision.operations
    return {
        "settings": asdict(settings),
        "accuracy": accuracy,
        "losses": [loss if math.isfinite(loss) else None for loss in run.losses],
        "bit_operations": asdict(spent),
        "average_bits": spent.average_bits,
        "saved": 1 - spent.average_bits / 32,
        "bytes": run.precision.bytes,
        "assignment": {name: asdict(each) for name, each in run.precision.assignment.items()},
        "log": run.precision.log.state_dict(),
        "practice": run.practice.state_dict(),
    }


def run_text(run: TrainingRun, document: Json) -> str:
    """Show the layers at the end, the cost, and what was predicted."""
    rows = [("layer", "forward", "backward", "state", "changes", "why it changed last")]
    for name, now in run.precision.assignment.items():
        changes = [change for change in run.precision.log.changes if change.layer == name]
        rows.append((name, now.level("forward"), now.gradients, now.state, str(len(changes) - 1), changes[-1].reason))
    spent = run.precision.operations
    parts = ", ".join(f"{part.replace('_', ' ')} {bits:.3g}" for part, bits in spent.single.items())
    practice = run.practice
    looked = (
        f"descent condition: of {sum(practice.promised)} steps promised to go down {practice.promised[1]} rose, of "
        f"{sum(practice.unpromised)} others {practice.unpromised[1]}"
        if sum(practice.promised) + sum(practice.unpromised)
        else "descent condition: no step was looked at, the run was too short"
    )
    return (
        f"{align(rows, (False, False, False, False, True, False))}\n\n"
        f"accuracy {document['accuracy']:.2f} % on the test split, in float32\n"
        f"bit-operations {spent.total:.4g}: {spent.average_bits:.2f} bits on average, "
        f"{100 * document['saved']:.0f} % fewer than float32 ({parts})\n"
        f"by the product of both operands' bits {spent.total_product:.4g}, "
        f"{100 * (1 - spent.total_product / (1024 * sum(spent.flops.values()))):.0f} % fewer\n"
        f"steps left out for NaN or Inf: {len(run.precision.log.anomalies)}\n"
        f"{looked}"
    )
