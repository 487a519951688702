"""The command line."""

from geoquant.cli import apply, demo, diagnosing, inspecting, measure, recovering, show, training
from geoquant.cli.app import app, main

__all__ = ["app", "apply", "demo", "diagnosing", "inspecting", "main", "measure", "recovering", "show", "training"]
