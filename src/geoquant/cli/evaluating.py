"""`geoquant evaluate`: how good is a model, in float, quantized, or with a small cache?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from geoquant import progress
from geoquant.cli.activating import kept_by_plan
from geoquant.cli.app import app
from geoquant.cli.inputs import (
    AsJson,
    BatchSize,
    Data,
    NormalizeOption,
    Source,
    Stride,
    Task,
    Weights,
    Window,
    fitting,
    read_model,
    say,
    show,
)
from geoquant.downstream import evaluate_tasks
from geoquant.errors import FileFormatError
from geoquant.evaluation import Evaluation, evaluate
from geoquant.export import WEIGHTS_FILE, load
from geoquant.importing import is_spec
from geoquant.models import class_names, is_pretrained_folder
from geoquant.quantize import key_value_bits, key_value_grid, quantized_keys_and_values

EVALUATION_IMAGES = 250


@app.command("evaluate")
def evaluate_command(
    target: Annotated[
        str, typer.Argument(metavar="PATH", help="A folder that `quantize` wrote, or a MODEL to evaluate in float.")
    ],
    data: Data,
    model: Annotated[
        str | None, typer.Option(help="The architecture, as MODEL elsewhere, when PATH is what `quantize` wrote.")
    ] = None,
    weights: Weights = None,
    normalize: NormalizeOption = None,
    split: Annotated[str, typer.Option(help="Which split to evaluate on.")] = "test",
    task: Task = None,
    window: Window = None,
    stride: Stride = None,
    kv_bits: Annotated[
        int | None, typer.Option(min=2, max=8, help="Keep keys and values of a language model in so many bits.")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Comma-separated tasks of lm-evaluation-harness to run as well (extra lm-eval).")
    ] = None,
    images: Annotated[
        int | None, typer.Option("--images", "--samples", min=1, help="Evaluate on this many samples only.")
    ] = None,
    batch_size: BatchSize = None,
    as_json: AsJson = False,
) -> None:
    """Measure accuracy and cross-entropy; of a quantized folder, and of its float model beside it with --weights.

    Language models give nats per token and perplexity; a Hugging Face folder as --model is measured in float as well.

    Examples: `geoquant evaluate geoquant.models.zoo:resnet20_cifar10 --weights resnet20.safetensors
    --data cifar10 --normalize imagenet`

    `geoquant evaluate out/ --model geoquant.models.zoo:resnet20_cifar10 --weights resnet20.safetensors
    --data cifar10 --normalize imagenet`

    `geoquant evaluate out/ --model stories260K/ --data tinystories/v1_valid_head.txt`
    """
    folder = Path(target)
    is_artifact = folder.name.endswith(".safetensors") or (folder.is_dir() and not is_pretrained_folder(folder))
    pretrained = is_pretrained_folder(model or target)
    if model is not None and not is_artifact:
        raise FileFormatError(
            f"{target} is no folder that `quantize` wrote; name one, or leave out --model to evaluate a float model"
        )
    if is_artifact:
        _check_told(target, model, is_spec(data) or pretrained or weights is not None or normalize is not None)
    results: dict[str, Evaluation] = {}
    net = read_model(model or target, weights, task=task)
    size = batch_size if batch_size or pretrained else EVALUATION_IMAGES
    batches = fitting(net, Source(data, normalize, weights, size, window=window).batches(split, net, images, stride))
    with progress.shown():
        if not is_artifact or weights is not None or pretrained:
            results["float"] = evaluate(net, batches)
        if is_artifact:
            net = load(folder, net)
            results["quantized"] = evaluate(net, batches)
        if kv_bits is not None:
            with quantized_keys_and_values(net, key_value_grid(kv_bits)):
                results[f"{kv_bits}-bit cache"] = evaluate(net, batches)
    document: dict[str, Any] = {name: _document(result) for name, result in results.items()}
    kept = key_value_grid(kv_bits) if kv_bits is not None else kept_by_plan(net)
    if kept is not None:
        document["cache_bits_per_token"] = key_value_bits(net, kept)
    if tasks is not None:
        document["tasks"] = evaluate_tasks(net, tasks.split(","), limit=images)
        say("\n".join(f"{task}: {scores}" for task, scores in document["tasks"].items()))
    of_tokens = pretrained and not is_spec(data) and class_names(net) is None
    if of_tokens:
        say(f"evaluated on {getattr(batches, 'description', data)}")
    if is_artifact:
        file = folder / WEIGHTS_FILE if folder.is_dir() else folder
        document["bytes"] = file.stat().st_size
    lines = [f"{name:>11}: {_text(result, of_tokens)}" for name, result in results.items()]
    show("\n".join(lines), document, as_json)


def _check_told(target: str, model: str | None, normalized: bool) -> None:
    """Refuse to evaluate an artifact without its architecture, or on images of unknown normalization."""
    if model is None:
        raise typer.BadParameter(
            f"{target} holds weights, not code: name its architecture with --model package.module:callable"
        )
    if not normalized:
        raise typer.BadParameter("say how images are normalized: --normalize dataset, imagenet or none")


def _text(result: Evaluation, of_tokens: bool) -> str:
    return f"{result}, perplexity {result.perplexity:.4f}" if of_tokens else str(result)


def _document(result: Evaluation) -> dict[str, Any]:
    return {
        "accuracy": result.accuracy.value,
        "accuracy_stderr": result.accuracy.stderr,
        "cross_entropy": result.cross_entropy.value,
        "cross_entropy_stderr": result.cross_entropy.stderr,
        "perplexity": result.perplexity,
        "predictions": result.predictions,
    }
