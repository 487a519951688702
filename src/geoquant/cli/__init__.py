"""The command line."""

from geoquant.cli import apply, demo, measure, show
from geoquant.cli.app import app, main

__all__ = ["app", "apply", "demo", "main", "measure", "show"]
