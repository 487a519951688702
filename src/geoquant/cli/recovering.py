"""`geoquant recover`: train a quantized model on its grids until it answers like the float one again."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from geoquant import progress
from geoquant.cli.app import app
from geoquant.cli.inputs import (
    AsJson,
    Data,
    Fold,
    Model,
    NormalizeOption,
    Seed,
    Source,
    Task,
    Weights,
    Window,
    pixel_constants,
    read_model,
    say,
    show,
)
from geoquant.data import AugmentedImages, load_images
from geoquant.errors import DataError
from geoquant.export import load, save
from geoquant.importing import is_spec
from geoquant.models import source_folder
from geoquant.plan import Plan
from geoquant.quantize import quantize
from geoquant.recovery import TRACE_FILE, Certify, Recovered, Watching, recover_
from geoquant.recovery.distributing import joined


@app.command("recover")
def recover_command(
    model: Model,
    data: Data,
    plan: Annotated[Path, typer.Option(help="The plan, from `geoquant allocate` or `quantize`.")],
    output: Annotated[
        Path, typer.Option(help="Folder for model.safetensors, plan.json, trace.json, and the checkpoint meanwhile.")
    ],
    weights: Weights = None,
    normalize: NormalizeOption = None,
    start: Annotated[
        Path | None,
        typer.Option(
            help="Folder that `quantize` wrote by this plan: training begins there. Without: MODEL is quantized first."
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training data. 2 to 10 usually do.")] = 2,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps, instead of epochs.")] = None,
    method: Annotated[
        str,
        typer.Option(help="lsq also learns the grids' steps (better below 4 bits); ste keeps them."),
    ] = "lsq",
    rate: Annotated[float, typer.Option(help="Peak learning rate of the weights.")] = 5e-4,
    norms: Annotated[
        str,
        typer.Option(
            help="train: batch norms follow the batches and are re-estimated at the end. frozen: they keep their "
            "statistics; for small batches, several processes, or little data."
        ),
    ] = "train",
    labels: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the loss from labels; the rest is the float model's answers.")
    ] = 0.0,
    temperature: Annotated[
        float,
        typer.Option(
            min=1e-6,
            help="Of the float model's answers: 1 for the least divergence; 4 teaches image classifiers faster, whose "
            "answers on training data are all but certain.",
        ),
    ] = 1.0,
    layers: Annotated[
        list[str] | None, typer.Option("--layer", help="Train only these layers (names, or patterns with re:).")
    ] = None,
    freeze: Annotated[
        float | None, typer.Option(help="Hold weights that oscillate in more than this share of steps, such as 0.01.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples per step.")] = 128,
    arithmetic: Annotated[
        str,
        typer.Option(help="Of the products of a step: float32, or bf16, twice as fast on processors with bf16 units."),
    ] = "float32",
    samples: Annotated[int | None, typer.Option(min=1, help="Train on so many samples only.")] = None,
    validate_on: Annotated[
        int,
        typer.Option(
            "--validation", min=0, help="Training samples held out to judge by; the best state seen is what is saved."
        ),
    ] = 1024,
    certify_drop: Annotated[
        float | None,
        typer.Option(
            help="Stop as soon as accuracy is certain (95 %) to be at most so many points below the float model's; "
            "looks once per epoch and at the end."
        ),
    ] = None,
    certify_images: Annotated[
        int, typer.Option(min=2, help="With --certify-drop: samples for the certificate.")
    ] = 4096,
    certify_on: Annotated[
        str, typer.Option(help="With --certify-drop: their split, which must take part in nothing else.")
    ] = "test",
    augment: Annotated[
        bool, typer.Option(help="Show crops and mirror images of image sets (not of mnist-like ones: see --no-mirror).")
    ] = True,
    mirror: Annotated[bool, typer.Option(help="With --augment: whether images may be mirrored.")] = True,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in the output folder.")] = False,
    tensorboard: Annotated[Path | None, typer.Option(help="Folder for the trace as TensorBoard scalars.")] = None,
    parallel: Annotated[
        str, typer.Option(help="Under torchrun: ddp, or fsdp to share out the parameters; auto takes ddp.")
    ] = "auto",
    window: Window = None,
    task: Task = None,
    fold_batch_norm: Fold = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Bring back what rounding lost, by training with the quantized weights (QAT), and save the model packed.

    Worth it where better rounding is not enough: at 2 or 3 bits, with binary or ternary weights, with activations of
    4 bits or fewer. It needs training data and minutes to hours; the float model teaches, labels are optional. The
    result has the plan's size to the byte.

    Example: `geoquant recover geoquant.models.zoo:resnet20_cifar10 --weights resnet20.safetensors --data cifar10
    --normalize imagenet --plan out/plan.json --start out/ --epochs 4 --output recovered/`

    On several processes: `torchrun --nproc-per-node 4 --no-python geoquant recover ...` with the same options.
    """
    net = read_model(model, weights, fold_batch_norm, task)
    chosen = Plan.load(plan)
    source = Source(data, normalize, weights, batch_size, seed, window)
    training, held_out = _data(net, source, samples, validate_on, augment, mirror)
    certify = None
    if certify_drop is not None:
        if certify_on == "train":
            raise DataError("train is trained on and cannot certify; name another split with --certify-on")
        certify = Certify(list(source.batches(certify_on, net, certify_images)), drop=certify_drop / 100)
    options: dict[str, Any] = {"steps": steps} if steps is not None else {"epochs": epochs}
    with progress.shown(), joined(parallel) as first:
        quantized = _begin(net, chosen, start, source)
        result = recover_(
            quantized,
            chosen,
            training,
            teacher=net,
            layers=layers or None,
            parallel=parallel,
            watching=Watching(validation=held_out, certify=certify, checkpoint=output, resume=resume),
            method=method,
            rate=rate,
            norms=norms,
            labels=labels,
            temperature=temperature,
            freeze=freeze,
            arithmetic=arithmetic,
            seed=seed,
            **options,
        )
        if first:
            _finish(quantized, chosen, result, output, tensorboard, as_json)


def _begin(net: nn.Module, plan: Plan, start: Path | None, source: Source) -> nn.Module:
    """Return the quantized model where training begins."""
    if start is not None:
        return load(start, net)
    return quantize(net, plan, replace(source, batch_size=None).calibration(net), seed=source.seed)


def _data(
    net: nn.Module, source: Source, samples: int | None, held_out: int, augment: bool, mirror: bool
) -> tuple[Any, list[Any] | None]:
    """Return training batches, and batches of training samples that are held out."""
    if augment and source_folder(net) is None and not is_spec(source.data):
        return _augmented(source, samples, held_out, mirror)
    limit = None if samples is None else samples + held_out
    batches = list(source.batches("train", net, limit))
    count = -(-held_out // (source.batch_size or 1))
    if count >= len(batches):
        raise DataError(
            f"{held_out} samples held out leave none of {len(batches)} batches to train on; lower --validation"
        )
    return batches[count:], batches[:count] or None


def _augmented(
    source: Source, samples: int | None, held_out: int, mirror: bool
) -> tuple[AugmentedImages, list[Any] | None]:
    """Return crops and mirror images of an image set; those that are held out are drawn once."""
    constants = pixel_constants(source.normalize, source.weights)
    images, size = load_images(source.data, "train"), source.batch_size or 1
    rest, judged = images.split_off(held_out, source.seed) if held_out else (images, None)
    if samples is not None and samples < len(rest):
        _, rest = rest.split_off(samples, source.seed)
    training = AugmentedImages(rest, min(size, len(rest)), source.seed, constants, mirror=mirror)
    if judged is None:
        return training, None
    views = AugmentedImages(judged, min(size, len(judged)), source.seed + 1, constants, mirror=mirror)
    return training, [views.batch(0, index) for index in range(len(views))]


def _finish(
    model: nn.Module, plan: Plan, result: Recovered, output: Path, tensorboard: Path | None, as_json: bool
) -> None:
    path = save(model, plan, output)
    result.trace.save(output / TRACE_FILE)
    if tensorboard is not None:
        result.trace.write_scalars(tensorboard)
    say(f"wrote {path}, {path.stat().st_size:,} bytes")
    document = {
        "bytes": path.stat().st_size,
        "steps": len(result.losses),
        "best_step": result.steps,
        "validation_before": result.start,
        "validation_after": result.best,
        "training_loss": result.losses[-1],
        "certified": result.certified,
        "certificate": None if result.certificate is None else asdict(result.certificate),
    }
    show(str(result), document, as_json)
