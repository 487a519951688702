"""The command line."""

from geoquant.cli import apply, demo, inspecting, measure, show
from geoquant.cli.app import app, main

__all__ = ["app", "apply", "demo", "inspecting", "main", "measure", "show"]
