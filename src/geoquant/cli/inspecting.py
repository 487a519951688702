"""`geoquant inspect`: what a file or a folder holds, verified."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from geoquant.cli.app import app
from geoquant.cli.inputs import AsJson, show
from geoquant.export import contents_document, contents_text, inspect


@app.command("inspect")
def inspect_command(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="A folder from `quantize` or `export`, a .gguf or .onnx file, or safetensors (one file, or shards).",
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """List the weights of an artifact with their types and bytes, and verify its checksums; no code in it is run.

    Examples: `geoquant inspect out/`

    `geoquant inspect model.gguf --json`
    """
    found = inspect(path)
    show(contents_text(found), contents_document(found), as_json)
