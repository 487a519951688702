"""Made-up findings with every kind of figure, shared by tests of the site."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from geoquant.findings import Claim, Figure, Series, StudyFindings, Table

WIDTHS = (2, 3, 4, 8)
LAYERS = ("stem", "body.0.conv", "head")

LINES = Figure(
    "accuracy",
    "lines",
    "Accuracy against bits",
    "average bits",
    "accuracy (%)",
    tuple(
        Series(name, WIDTHS, tuple(90 - 40 * math.exp(-bits * rate) for bits in WIDTHS), (3.0, 2.0, 1.0, 0.5))
        for name, rate in (("uniform", 0.6), ("geoquant", 1.2))
    ),
    "Two lines that rise; geoquant lies above.",
    note="One net.",
)
DAMAGE = Figure(
    "damage",
    "lines",
    "Damage against bits",
    "bits",
    "KL (nats)",
    (Series("stem", WIDTHS, (1.0, 0.3, 0.0, None), (0.1, 1.0, 0.0, None)),),
    "A line that falls to zero.",
    log_y=True,
)
SCATTER = Figure(
    "seen",
    "scatter",
    "Predicted and seen",
    "predicted",
    "seen",
    (Series("plans", (0.1, 1.0, 1.0), (0.2, 0.9, 1.1), notes=("a", "b", "c")),),
    "Three points near the diagonal.",
    log_x=True,
)
BARS = Figure(
    "needed",
    "bars",
    "Bits that each layer needs",
    "layer",
    "bits",
    (Series("digits", LAYERS, (5.0, 3.0, 2.0), (1.0, 0.0, 0.5)), Series("MNIST", LAYERS[:2], (4.0, 2.0))),
    "Bars that get shorter.",
)
STACKED = Figure(
    "time",
    "stacked",
    "Where the time goes",
    "net",
    "seconds",
    (Series("measuring", ("mlp", "cnn"), (1.0, 2.0)), Series("solving", ("mlp", "cnn"), (3.0, 4.0))),
    "Two stacks.",
)
HEATMAP = Figure(
    "map",
    "heatmap",
    "Bits by layer and method",
    "method",
    "layer",
    (Series("stem", ("uniform", "geoquant"), (4.0, 8.0)), Series("head", ("geoquant",), (2.0,))),
    "A map of two layers by two methods.",
    colour="bits",
)
FIGURES = (LINES, DAMAGE, SCATTER, BARS, STACKED, HEATMAP)
CLAIMS = (
    Claim("Saves 15–25 % of memory", "A paper", "8.1 ± 3.0 %, 5 seeds", "fails", "geoquant study run toy"),
    Claim("The solver takes less than 1 s", "A paper", "0.07 s", "holds", "geoquant study run toy"),
    Claim("Gains 0.5–1.5 points", "Another paper", "0.1 to 1.7 points", "partly", "geoquant study run toy"),
    Claim("Takes 3 s on a GPU", "Another paper", "no GPU was at hand", "not measured", "geoquant study run toy"),
)
CELLS = (
    {"net": "mlp", "seed": 0, "bits": 2, "accuracy": 0.1, "extra": 7},
    {"net": "mlp", "seed": 1, "bits": "ternary", "accuracy": 1 / 3, "extra": None},
)
TABLE = Table("bytes", "Bytes", ("net", "bytes", "share"), (("mlp", 12345, 0.25), ("cnn", 99, None)), "Inclusive.")


def findings(
    name: str = "toy",
    figures: Sequence[Figure] = FIGURES,
    claims: Sequence[Claim] = CLAIMS,
    cells: Sequence[Mapping[str, Any]] = CELLS,
    **changes: Any,
) -> StudyFindings:
    """Return everything that a page shows."""
    values: dict[str, Any] = {
        "title": f"A study called {name}",
        "source": "A paper",
        "question": "Does it help?",
        "preset": "quick",
        "command": f"geoquant study run {name}",
        "tables": (TABLE,),
        "rows": ({"net": "mlp", "layer": "stem", "kl": 0.5},),
        "failed": (("net=cnn seed=0", "DataError: no such set"),),
        "missing": (("net=cnn seed=1", "not run yet"),),
        "seconds": 12.0,
        "versions": {"geoquant": "0.1.0"},
        "finished": ("2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00"),
    }
    shared = {"name": name, "claims": tuple(claims), "figures": tuple(figures), "cells": tuple(cells)}
    return StudyFindings(**{**values, **shared, **changes})
