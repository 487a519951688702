"""The command line."""

from geoquant.cli import apply, demo, inspecting, measure, show, training
from geoquant.cli.app import app, main

__all__ = ["app", "apply", "demo", "inspecting", "main", "measure", "show", "training"]
