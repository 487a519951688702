"""Does rounding fail by leaving a low-loss basin, and does training on the grid find the way back?

The predictions of "Gradients at Quantized Weights Bias to the Low-Loss Basin" on small nets, a ResNet-20 and a small
Llama, over symmetric, affine, ternary and binary grids; the diagnosis that is made beforehand; and the theory's toy.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from geoquant.study.at_hand import at_hand
from geoquant.study.cases import RESNET20, STORIES, missing
from geoquant.study.declaration import PRESETS, Configuration, Preset, Study, register
from geoquant.study.studies.low_loss_basin.cells import run
from geoquant.study.studies.low_loss_basin.drawing import FIGURES, TABLES
from geoquant.study.studies.low_loss_basin.reading import CLAIMS, SOURCE

GRIDS = ("binary", "ternary", "int2", "int2:affine", "int3", "int3:affine", "int4", "int4:affine", "int6", "int8")
FEW_GRIDS = ("ternary", "int2", "int4", "int8")
SOME_GRIDS = ("int2", "int8", "ternary", "int3", "int4", "binary", "int2:affine")
"""What a laptop measures of the pretrained nets, once: a cell of theirs takes minutes."""
SMALL: dict[str, Any] = {"images": None, "epochs": 20, "calibration": 256, "test": None, "diagnose": 128}
PRETRAINED: dict[str, Any] = {"images": None, "epochs": None, "calibration": 512, "test": 5000, "diagnose": 128}
LLAMA: dict[str, Any] = {"images": None, "epochs": None, "calibration": 64, "test": 48, "diagnose": 32}


def nets(preset: Preset) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield net, data and sizes."""
    if preset == "quick":
        yield "digits_cnn", "digits", {**SMALL, "diagnose": 64}
        if at_hand("mnist"):
            yield "mlp3_mnist", "mnist", {**SMALL, "images": 3000, "epochs": 3, "test": 1000, "diagnose": 64}
        return
    yield "digits_cnn", "digits", SMALL
    yield "mlp3_mnist", "mnist", {**SMALL, "epochs": 3}
    yield RESNET20, "cifar10", PRETRAINED if preset == "laptop" else {**PRETRAINED, "test": None}
    yield STORIES, "TinyStories", LLAMA


def configurations(preset: Preset) -> Iterator[Configuration]:
    """Yield the cells of a preset."""
    yield {"part": "toy"}
    steps = {"quick": 60, "laptop": 300, "full": 3000}[preset]
    for seed in range(1 if preset == "quick" else 3):
        for net, data, sizes in nets(preset):
            for grid in _grids(preset, net, seed):
                yield {"part": "grid", "net": net, "data": data, "grid": grid, "seed": seed, "steps": steps, **sizes}


def _grids(preset: Preset, net: str, seed: int) -> tuple[str, ...]:
    if preset == "quick":
        return FEW_GRIDS
    if preset == "laptop" and net in (RESNET20, STORIES):
        return SOME_GRIDS if seed == 0 else ()
    return GRIDS


LOW_LOSS_BASIN = register(
    Study(
        "low-loss-basin",
        "Rounding that leaves the low-loss basin, and training that finds back",
        SOURCE,
        "Why does rounding fail at few bits, and why does training with gradients at the quantized weights recover: do "
        "trained nets do what the low-loss basin predicts?",
        {preset: partial(configurations, preset) for preset in PRESETS},
        run,
        claims=CLAIMS,
        figures=FIGURES,
        version=2,
        tables=TABLES,
        unavailable=missing,
    )
)
