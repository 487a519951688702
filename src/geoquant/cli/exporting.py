"""`geoquant export` and `geoquant latency`: hand a quantized model to an engine, and ask the engine for its times."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from geoquant import progress
from geoquant.cli.app import app
from geoquant.cli.inputs import (
    AsJson,
    Model,
    NormalizeOption,
    Task,
    Weights,
    pairs,
    read_batches,
    read_model,
    say,
    show,
)
from geoquant.cli.measure import split
from geoquant.export import EXPORTERS, contents_document, contents_text, export_model, load, measure_latency
from geoquant.export.timing import GRIDS
from geoquant.plan import align
from geoquant.quantize import quantized_state

Sample = Annotated[
    str | None, typer.Option("--data", help="Data whose first samples show what inputs look like; see `profile`.")
]


def _options() -> str:
    """Return the options of each format, a line of help."""
    found = {name: [option for option in EXPORTERS[name].options if option != "example"] for name in EXPORTERS}
    return "; ".join(f"{name}: {', '.join(options)}" for name, options in found.items() if options)


@app.command("export")
def export_command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What `geoquant quantize` wrote.")],
    output: Annotated[Path, typer.Option(help="File, or folder, to write.")],
    model: Annotated[str, typer.Option(help="The architecture: `package.module:callable`, or a Hugging Face folder.")],
    format: Annotated[str, typer.Option("--format", help=f"One of {', '.join(EXPORTERS)}.")] = "onnx",
    options: Annotated[
        list[str] | None,
        typer.Option("--option", help=f"NAME=VALUE of the format, such as opset=21; repeatable. {_options()}."),
    ] = None,
    data: Sample = None,
    normalize: NormalizeOption = None,
    task: Task = None,
    as_json: AsJson = False,
) -> None:
    """Write a quantized model in the format of an engine; list what each weight became.

    Example: `geoquant export out/ --model geoquant.models.zoo:resnet20_cifar10 --format onnx --output resnet20.onnx`
    """
    exporter = EXPORTERS[format]
    given: dict[str, Any] = {name: _value(text) for name, text in pairs(options or (), "option").items()}
    net = load(folder, read_model(model, None, task=task))
    if data is not None and "example" in exporter.options:
        given["example"] = read_batches(data, "train", normalize, None, 2, 2, model=net)[0]
    found = export_model(net, quantized_state(net).plan, output, format, **given)
    show(contents_text(found), contents_document(found), as_json)


@app.command("latency")
def latency_command(
    model: Model,
    output: Annotated[Path, typer.Option(help="JSON file for the table, which `--latency-table` reads.")],
    data: Sample = None,
    normalize: NormalizeOption = None,
    grids: Annotated[str, typer.Option(help="Comma-separated grids to time, beside fp32.")] = ",".join(GRIDS[1:]),
    batch_size: Annotated[int, typer.Option(min=1, help="Samples at once; the times are for as many.")] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="Runs per time; their median counts.")] = 30,
    threads: Annotated[int, typer.Option(min=1, help="Threads that ONNX Runtime may use.")] = 1,
    weights: Weights = None,
    task: Task = None,
    as_json: AsJson = False,
) -> None:
    """Time every layer at every grid in ONNX Runtime, for a budget in milliseconds.

    Example: `geoquant latency geoquant.models.zoo:mlp3_mnist --output latency.json`, then
    `geoquant allocate profile --latency 0.2 --latency-table latency.json`
    """
    net = read_model(model, weights, task=task)
    batch = None
    if data is not None:
        batch = read_batches(data, "train", normalize, weights, batch_size, batch_size, model=net)[0]
    elif batch_size != 1:
        raise typer.BadParameter("times for more than one sample need --data, which shows what a sample is")
    with progress.shown():
        table = measure_latency(net, batch, split(grids), repeats, threads)
    table.save(output)
    say(f"wrote {output}")
    rows: dict[str, dict[str, float]] = {}
    for site, grid, milliseconds in table.entries:
        rows.setdefault(site, {})[grid] = milliseconds
    show(_table(rows, table.base), {"milliseconds": rows, "base": table.base}, as_json)


def _table(rows: dict[str, dict[str, float]], base: float) -> str:
    names: Sequence[str] = list(next(iter(rows.values())))
    lines = [["milliseconds", *names], *([site, *(f"{row[name]:.4f}" for name in names)] for site, row in rows.items())]
    return align(
        [*lines, ["everything else", f"{base:.4f}", *([""] * (len(names) - 1))]], (False, *[True] * len(names))
    )


def _value(text: str) -> int | str:
    return int(text) if text.isdecimal() else text
