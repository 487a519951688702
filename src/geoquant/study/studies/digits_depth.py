"""Do early layers need more bits than late ones, or fewer? Two sources disagree; here on a net that trains in seconds.

Each cell rounds one layer of a trained net, the others staying float, and asks from which width on the predictions
stay: the *bits needed* are the least width from which on the KL divergence to the float net is at most 0.01 nats an
image. One layer at a time says nothing about errors that add up, and one small net nothing about large ones.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from geoquant.data import digits
from geoquant.evaluation import divergence, evaluate
from geoquant.findings import Claim, Figure, Series, Table, Verdict
from geoquant.grids import Grid
from geoquant.models import find_sites, get_weight, temporarily
from geoquant.models.zoo import digits_cnn
from geoquant.study.declaration import Configuration, Preset, Study, register
from geoquant.study.results import Results
from geoquant.training import fit_classifier_

WIDTHS = tuple(range(2, 9))
TOLERANCE = 0.01
EPOCHS = 8
SEEDS: dict[Preset, int] = {"quick": 2, "laptop": 10, "full": 50}
LAYERS = tuple(site.name for site in find_sites(digits_cnn()))
EARLY_FEWER = "Early layers need fewer bits, later layers need more"
ENDS_MORE = "The first and the last layer need 2–4 times the bits of the layers between"


def run(configuration: Configuration) -> dict[str, Any]:
    """Round one layer of one trained net at every width."""
    model = _trained(configuration["seed"])
    reference, test = copy.deepcopy(model), digits("test").batches(360)
    site = next(site for site in find_sites(model) if site.name == configuration["layer"])
    weight, rows = get_weight(model, site), []
    for bits in WIDTHS:
        rounded = Grid.parse(f"int{bits}").quantize(site.matrix(weight)).dequantize()
        with temporarily(model, site, site.restore(rounded)):
            kl, accuracy = divergence(reference, model, test).value, evaluate(model, test).accuracy.value
        rows.append({"bits": bits, "kl": kl, "accuracy": 100 * accuracy})
    return {
        "float_accuracy": 100 * evaluate(reference, test).accuracy.value,
        "bits_needed": least_width([row["kl"] for row in rows]),
        "kl_at_3_bits": rows[1]["kl"],
        "weights": weight.numel(),
        "rows": rows,
    }


def least_width(damages: list[float]) -> int:
    """Return the least width from which on no damage exceeds the tolerance; one more than the widest if even that does.

    >>> least_width([1.0, 0.001, 0.02, 0.005, 0.0, 0.0, 0.0])
    5
    """
    wrong = [bits for bits, damage in zip(WIDTHS, damages, strict=True) if damage > TOLERANCE]
    return wrong[-1] + 1 if wrong else WIDTHS[0]


@lru_cache(maxsize=4)
def _trained(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = digits_cnn()
    inputs, labels = digits("train").tensors("dataset", channels_last=False)
    fit_classifier_(model, inputs, labels, epochs=EPOCHS, seed=seed, batch_size=64)
    return model


def _cells(preset: Preset) -> Iterator[Configuration]:
    for seed in range(SEEDS[preset]):
        for layer in LAYERS:
            yield {"net": "digits_cnn", "seed": seed, "layer": layer}


def needed(results: Results) -> dict[str, float] | None:
    """Return the mean bits needed by each layer, in order of depth; None while a layer has no result."""
    found = {layer: results.where(layer=layer).summary("bits_needed") for layer in LAYERS}
    known = {layer: one.mean for layer, one in found.items() if one is not None}
    return known if len(known) == len(LAYERS) else None


def early_fewer(results: Results) -> Claim:
    """Compare the first half of the net with the second."""
    bits = needed(results)
    measured, verdict = "not all layers have a result", "not measured"
    if bits is not None:
        half = len(LAYERS) // 2
        early, late = _mean(list(bits.values())[:half]), _mean(list(bits.values())[-half:])
        verdict = "holds" if late - early >= 0.5 else "fails" if late - early <= -0.5 else "partly"
        measured = f"{early:.2f} bits in the first {half} layers, {late:.2f} in the last {half}; {_base(results)}"
    source = "Curvature-Guided Transformer Quantization"
    return Claim(EARLY_FEWER, source, measured, _verdict(verdict), results.command)


def ends_more(results: Results) -> Claim:
    """Compare both ends of the net with what is between."""
    bits = needed(results)
    measured, verdict = "not all layers have a result", "not measured"
    if bits is not None:
        first, *middle, last = bits.values()
        ratio = _mean([first, last]) / _mean(middle)
        verdict = "holds" if ratio >= 2 else "fails" if ratio <= 1.1 else "partly"
        measured = (
            f"first {first:.2f}, last {last:.2f}, between {_mean(middle):.2f} bits: {ratio:.2f} times; {_base(results)}"
        )
    return Claim(ENDS_MORE, "Curvature-Guided Bit Allocation", measured, _verdict(verdict), results.command)


def bits_figure(results: Results) -> Figure:
    """Bars of the bits needed, over depth."""
    series = results.series("bits needed", "layer", "bits_needed")
    seen = ", ".join(f"{layer} {bits:.1f}" for layer, bits in zip(series.x, series.y, strict=True) if bits is not None)
    return Figure(
        "bits-needed",
        "bars",
        "Bits that each layer needs alone",
        "layer, from input to output",
        f"least width with a KL of at most {TOLERANCE} nats",
        (series,),
        f"Bars, one a layer from input to output. Mean bits needed: {seen}.",
    )


def damage_figure(results: Results) -> Figure:
    """Lines of the damage against the width, one a layer."""
    series = tuple(_damage(results.where(layer=layer), layer) for layer in results.values("layer"))
    return Figure(
        "damage",
        "lines",
        "Damage of rounding one layer",
        "bits of that layer",
        "KL divergence to the float net, nats an image",
        series,
        f"{len(series)} lines that fall with the bits, one a layer; "
        + "; ".join(f"{each.name} {each.y[1]:.2g} nats at 3 bits" for each in series if each.y[1] is not None),
        log_y=True,
        note=f"Means over seeds. Bits are called enough at {TOLERANCE} nats.",
    )


def layer_table(results: Results) -> Table:
    """List weights, bits needed and damage at 3 bits of each layer."""
    rows = []
    for (layer,), cells in results.by("layer"):
        bits, damage = cells.summary("bits_needed"), cells.summary("kl_at_3_bits")
        rows.append((layer, cells[0]["weights"], str(bits), str(damage)))
    columns = ("layer", "weights", "bits needed: mean ± deviation (seeds)", "KL at 3 bits, nats")
    return Table("layers", "Every layer alone", columns, tuple(rows))


def _damage(results: Results, layer: str) -> Series:
    found = [[row["kl"] for row in cell.rows] for cell in results]
    return Series(layer, WIDTHS, tuple(_mean([row[i] for row in found]) for i in range(len(WIDTHS))))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _base(results: Results) -> str:
    return f"one net (digits), {len(results.values('seed'))} seeds, {len(LAYERS)} layers"


def _verdict(word: Any) -> Verdict:
    found: Verdict = word
    return found


DIGITS_DEPTH = register(
    Study(
        "digits-depth",
        "Do early layers need more bits? A small net on digits",
        "Curvature-Guided Bit Allocation; Curvature-Guided Transformer Quantization",
        "Two sources disagree on whether early layers need more bits than late ones. Which of them does a trained "
        "convolutional net agree with, when one layer at a time is rounded?",
        {preset: lambda preset=preset: _cells(preset) for preset in SEEDS},  # type: ignore[misc]
        run,
        claims=(early_fewer, ends_more),
        figures=(bits_figure, damage_figure),
        tables=(layer_table,),
    )
)
