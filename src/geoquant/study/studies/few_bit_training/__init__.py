"""Can training itself run in few bits? The experiments of "End-to-End QAT via Numerical Geometry".

Its three nets; its baselines, both kinds of mixed precision, cyclic precision, its schedule as it is written and
geoquant's; its levels and finer ones; stochastic and nearest rounding of gradients. Every expectation has a verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from geoquant.study.at_hand import at_hand, missing_data
from geoquant.study.declaration import PRESETS, Configuration, Preset, Study, register
from geoquant.study.studies.few_bit_training import drawing, practice, reach, reading
from geoquant.study.studies.few_bit_training.cells import ADAPTIVE, run

NETS = {"few_bits_cnn2": "mnist", "few_bits_cnn4": "fashion_mnist", "few_bits_resnet": "cifar10"}
SIZES: dict[str, dict[str, tuple[int | None, int, int]]] = {
    "laptop": {"few_bits_cnn2": (12000, 6, 64), "few_bits_cnn4": (8000, 5, 64), "few_bits_resnet": (3000, 4, 32)},
    "full": {"few_bits_cnn2": (None, 50, 128), "few_bits_cnn4": (None, 100, 128), "few_bits_resnet": (None, 100, 128)},
}
"""Images, epochs and batch size of each net."""
STARTS = {"few_bits_cnn4": "kaiming_normal"}
"""How weights are drawn where torch's way leaves a net on a plateau for its first hundred steps."""
STATIC = ("float32", "seed-amp", "amp", "uniform:fp16", "uniform:int16", "uniform:int8", "uniform:int4")
FINE_STATIC = tuple(f"uniform:int{bits}" for bits in (2, 3, 5, 6, 7))
PER_PASS = ("uniform:int4/int5", "uniform:int4/int6", "uniform:int5/int6")
NEAREST = ("uniform:int8", "uniform:int6", "uniform:int4", "numgeom")

Row = tuple[str, str, str, dict[str, Any]]


def methods() -> Iterator[Row]:
    """Yield method, levels, rounding of gradients and options of every row."""
    for name in STATIC:
        yield name, "coarse", "stochastic", {}
    for name in FINE_STATIC + PER_PASS:
        yield name, "fine", "stochastic", {}
    for levels in ("coarse", "fine"):
        for name in ADAPTIVE:
            yield name, levels, "stochastic", {}
    for options in ({"curved": True}, {"share": 0.3}, {"share": 0.9}):
        yield "numgeom", "fine", "stochastic", options
    for name in NEAREST:
        yield name, "fine", "nearest", {}
    for bits in (8, 4):  # the optimizer's state and the stored weights as well
        for update in ("stochastic", "nearest"):
            yield f"uniform:int{bits}", "coarse", update, {"optimizer": f"int{bits}", "stored": f"int{bits}"}


def main_methods() -> Iterator[Row]:
    """Yield the rows that claims and figures compare: half of them, for a net whose steps take long on two cores."""
    for name in STATIC:
        yield name, "coarse", "stochastic", {}
    for name in ("uniform:int5", "uniform:int6", "uniform:int4/int5", "cpt", "sound"):
        yield name, "fine", "stochastic", {}
    yield "seed18", "coarse", "stochastic", {}
    for levels in ("coarse", "fine"):
        for name in ("gradient", "curvature", "combined", "numgeom"):
            yield name, levels, "stochastic", {}
    for name in ("uniform:int8", "uniform:int4"):
        yield name, "fine", "nearest", {}


def few_methods() -> Iterator[Row]:
    """Yield the rows that the claims need, on the source's levels, and geoquant's schedule on finer ones."""
    for name in ("float32", "seed-amp", "uniform:int8", "uniform:int4"):
        yield name, "coarse", "stochastic", {}
    yield "uniform:int8", "fine", "nearest", {}
    for name in ("gradient", "curvature", "combined", "seed18", "numgeom"):
        yield name, "coarse", "stochastic", {}
    yield "numgeom", "fine", "stochastic", {}


def configurations(preset: Preset) -> Iterator[Configuration]:
    """Yield the cells of a preset."""
    if preset == "quick":
        net, data = ("few_bits_cnn2", "mnist") if at_hand("mnist") else ("digits_cnn", "digits")
        sizes: tuple[int | None, int, int] = (None, 4, 32) if data == "digits" else (2000, 3, 32)
        yield from _cells({net: data}, {net: sizes}, {net: few_methods}, 1, 1000 if data != "digits" else None)
        return
    fewer = {"few_bits_resnet"} if preset == "laptop" else set()
    rows = {net: main_methods if net in fewer else methods for net in NETS}
    yield from _cells(NETS, SIZES[preset], rows, 3, None)


def _cells(
    nets: dict[str, str],
    sizes: dict[str, tuple[int | None, int, int]],
    rows: dict[str, Callable[[], Iterator[Row]]],
    seeds: int,
    test: int | None,
) -> Iterator[Configuration]:
    for seed in range(seeds):
        for net, data in nets.items():
            images, epochs, batch = sizes[net]
            for method, levels, rounding, options in rows[net]():
                yield {
                    "net": net,
                    "data": data,
                    "method": method,
                    "levels": levels,
                    "rounding": rounding,
                    "options": options,
                    "seed": seed,
                    "images": images,
                    "epochs": epochs,
                    "batch": batch,
                    "test": test,
                    **({"start": STARTS[net]} if net in STARTS else {}),
                }


def unavailable(configuration: Configuration) -> str | None:
    """Say which image set is missing."""
    return missing_data(configuration["data"])


FEW_BIT_TRAINING = register(
    Study(
        "few-bit-training",
        "Training in few bits: schedules against uniform, mixed and cyclic precision",
        reading.SOURCE,
        "How few bits can forward pass, backward pass and optimizer do with, and does it pay to let gradients and "
        "curvature decide when and where?",
        {preset: partial(configurations, preset) for preset in PRESETS},
        run,
        claims=(*reading.CLAIMS, *reach.CLAIMS, *practice.CLAIMS),
        figures=drawing.FIGURES,
        tables=(reach.reach_table, *drawing.TABLES, *practice.TABLES),
        unavailable=unavailable,
    )
)
