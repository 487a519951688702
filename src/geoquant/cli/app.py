"""The `geoquant` program: one command per step, errors as one sentence and exit code 2."""

from __future__ import annotations

import sys

import typer

from geoquant import __version__
from geoquant.errors import GeoquantError

app = typer.Typer(
    name="geoquant",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Decide, with evidence, how few bits each layer of a network needs, and quantize it. Try `geoquant demo`.",
)
plan_app = typer.Typer(no_args_is_help=True, help="Look at plans.")
app.add_typer(plan_app, name="plan")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"geoquant {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print it."),
) -> None:
    """Take options that stand before the command."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exit with 0, with 2 on bad input, with 130 when interrupted."""
    try:
        app(args=arguments)
    except GeoquantError as error:
        print(f"geoquant: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("geoquant: interrupted", file=sys.stderr)
        sys.exit(130)
