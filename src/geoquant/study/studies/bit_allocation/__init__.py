"""Does curvature say how many bits a layer needs? The experiments of "Curvature-Guided Bit Allocation".

Four nets, all of the source's methods beside its CAQ in two forms and geoquant's own pipeline, over sizes from 2 to 32
bits; its metrics, figures, ablation and times, and its expectations with a verdict each. Where no image sets are at
hand, ``quick`` runs on the embedded digits. Times are of the processor, all threads together.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from geoquant.study.at_hand import at_hand, missing_data
from geoquant.study.declaration import PRESETS, Configuration, Preset, Study, register
from geoquant.study.studies.bit_allocation.cells import METHODS, WRITTEN, run
from geoquant.study.studies.bit_allocation.drawing import FIGURES, TABLES
from geoquant.study.studies.bit_allocation.reading import CLAIMS, FOUR_LAYERS, SOURCE

NETS = {
    "mlp2_mnist": "mnist",
    "mlp4_fashion_mnist": "fashion_mnist",
    "cnn4_cifar10": "cifar10",
    "cnn6_svhn": "svhn",
}
"""The nets of the source on their image sets; the last one's stand-in where SVHN is not at hand is CIFAR-10."""
STAND_IN = "cifar10"
COARSE, COARSEST = (2, 2.5, 3, 4, 8, 16), (2, 4)
HALVES = (2, 2.5, 3, 3.5, 4, 5, 6, 8, 16, 32)
FINE = (2, 2.25, 2.5, 2.75, 3, 3.25, 3.5, 3.75, 4, 4.5, 5, 6, 7, 8, 12, 16, 24, 32)
FEW: dict[str, Any] = {"images": 3000, "epochs": 3, "calibration": 128, "test": 1000}
FEWEST: dict[str, Any] = {"images": 1000, "epochs": 2, "calibration": 64, "test": 250}
SOME: dict[str, Any] = {"images": 20_000, "epochs": 10, "calibration": 256, "test": 5000}
SOME_PHOTOGRAPHS: dict[str, Any] = {"images": 8000, "epochs": 5, "calibration": 128, "test": 1000}
ALL: dict[str, Any] = {"images": None, "epochs": 60, "calibration": 1024, "test": 10_000}


def configurations(preset: Preset) -> Iterator[Configuration]:
    """Yield the cells of a preset, one seed of all nets after the other."""
    yield {"part": "solver", "layers": 50, "seed": 0}
    for seed in range(1 if preset == "quick" else 5):
        for net, data, sizes in _nets(preset):
            common = {"net": net, "data": data, "seed": seed, **sizes}
            yield {"part": "facts", **common, "widths": [4, 8], "inputs": 8 if preset == "quick" else 32}
            if preset != "quick" or net != FOUR_LAYERS:
                yield from _sweeps(preset, common)


def _nets(preset: Preset) -> Iterator[tuple[str, str, dict[str, Any]]]:
    if preset == "quick":
        if not at_hand("mnist"):
            yield "digits_cnn", "digits", {**FEW, "images": None, "epochs": 8, "test": None}
            return
        yield "mlp2_mnist", "mnist", FEW
        yield "mlp4_fashion_mnist", "fashion_mnist", FEW
        yield "cnn4_cifar10", "cifar10", FEWEST
        return
    for net, data in NETS.items():
        some = SOME_PHOTOGRAPHS if net.startswith("cnn") else SOME
        yield net, data, some if preset == "laptop" else ALL
    if not at_hand("svhn"):
        yield "cnn6_svhn", STAND_IN, SOME_PHOTOGRAPHS if preset == "laptop" else ALL


def _sweeps(preset: Preset, common: dict[str, Any]) -> Iterator[Configuration]:
    photographs = common["net"].startswith("cnn")
    quick, laptop = (COARSEST, HALVES) if photographs else (COARSE, FINE)
    widths = list({"quick": quick, "laptop": laptop, "full": FINE}[preset])
    for method in METHODS:
        draws = {"draws": 100 if preset == "full" else 20} if method == "random search" else {}
        yield {"part": "sweep", **common, "method": method, "widths": widths, **draws}
    for draw in range(1 if preset == "quick" else 3):
        yield {"part": "sweep", **common, "method": WRITTEN, "widths": widths, "wrong_by": 2.0, "draw": draw}


def unavailable(configuration: Configuration) -> str | None:
    """Say which image set is missing."""
    return missing_data(configuration["data"]) if "data" in configuration else None


BIT_ALLOCATION = register(
    Study(
        "bit-allocation",
        "Curvature-guided bit allocation against uniform widths and simpler rules",
        SOURCE,
        "Does a layer's curvature say how many bits it needs? What do its plans save in memory, or gain in accuracy, "
        "beside uniform widths, gradient norms, the Hessian's diagonal, random search and measured damage?",
        {preset: partial(configurations, preset) for preset in PRESETS},
        run,
        claims=CLAIMS,
        figures=FIGURES,
        version=2,
        tables=TABLES,
        unavailable=unavailable,
    )
)
