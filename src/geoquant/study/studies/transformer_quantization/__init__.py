"""Do condition numbers say where bits are needed? The experiments of "Curvature-Guided Transformer Quantization".

Its MNIST table, its times, its analyses of a residual net and a Transformer, here on trained ones, and its theorem
tests as oracles. The residual net is the pretrained ResNet-20 of CIFAR-10; a ResNet-18 trained on CIFAR-10 is left to
the presets laptop and full.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from geoquant.study.at_hand import at_hand
from geoquant.study.cases import RESNET20, STORIES, missing
from geoquant.study.declaration import PRESETS, Configuration, Preset, Study, register
from geoquant.study.studies.transformer_quantization.cells import run
from geoquant.study.studies.transformer_quantization.reading import BATCHES, CLAIMS, FIGURES, SOURCE, TABLES

QUICK: dict[str, Any] = {"images": 3000, "epochs": 3, "calibration": 256, "test": 1000}
WHOLE: dict[str, Any] = {"images": None, "epochs": 3, "calibration": 512, "test": None}
RESNET18: dict[str, dict[str, Any]] = {
    "laptop": {"images": 4000, "epochs": 3, "calibration": 64, "test": 250},
    "full": {"images": None, "epochs": 60, "calibration": 512, "test": 250},
}


def configurations(preset: Preset) -> Iterator[Configuration]:
    """Yield the cells of a preset."""
    quick = preset == "quick"
    yield {"part": "oracles"}
    yield {"part": "times", "seed": 0, "batches": BATCHES, "pixels": 32 if quick else 224}
    net, data = ("mlp3_mnist", "mnist") if at_hand("mnist") or not quick else ("digits_cnn", "digits")
    sizes = QUICK if quick else WHOLE
    if data == "digits":
        sizes = {**sizes, "epochs": 8, "test": None}
    for seed in range(2 if quick else 5):
        yield {"part": "mnist", "net": net, "data": data, "seed": seed, **sizes}
    few = {"seed": 0, "calibration": 64 if quick else 256, "test": 250}
    yield {"part": "resnet", "net": RESNET20, "data": "cifar10", **few}
    if not quick:
        yield {"part": "resnet", "net": "resnet18_cifar10", "data": "cifar10", "seed": 0, **RESNET18[preset]}
    windows = {"calibration": 4, "test": 4} if quick else {"calibration": 64, "test": 48}
    yield {"part": "transformer", "net": STORIES, "data": "TinyStories", "seed": 0, **windows}


TRANSFORMER_QUANTIZATION = register(
    Study(
        "transformer-quantization",
        "Guided by condition numbers: MNIST, a residual net, a Transformer, and the theorem tests",
        SOURCE,
        "Does allocating bits by condition numbers beat uniform widths, do early layers need fewer bits, does "
        "attention need more than the feed-forward part, and do the theorems hold as they are stated?",
        {preset: partial(configurations, preset) for preset in PRESETS},
        run,
        claims=CLAIMS,
        figures=FIGURES,
        tables=TABLES,
        unavailable=missing,
    )
)
