"""The command line."""

from geoquant.cli import (
    apply,
    demo,
    diagnosing,
    evaluating,
    exporting,
    inspecting,
    measure,
    recovering,
    show,
    studying,
    training,
)
from geoquant.cli.app import app, main

__all__ = [
    "app",
    "apply",
    "demo",
    "diagnosing",
    "evaluating",
    "exporting",
    "inspecting",
    "main",
    "measure",
    "recovering",
    "show",
    "studying",
    "training",
]
