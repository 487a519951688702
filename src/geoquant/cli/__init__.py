"""The command line."""

from geoquant.cli import apply, demo, diagnosing, inspecting, measure, show, training
from geoquant.cli.app import app, main

__all__ = ["app", "apply", "demo", "diagnosing", "inspecting", "main", "measure", "show", "training"]
