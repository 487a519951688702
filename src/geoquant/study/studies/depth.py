"""Do early layers need more bits than late ones, or fewer? Two sources disagree; one table of trained nets settles it.

"Curvature-Guided Transformer Quantization" says that early layers need fewer bits and later layers more,
"Curvature-Guided Bit Allocation" that both ends need 2–4 times the bits of the middle. What a layer needs is measured:
the bits that the exact plan gives it for the damage of rounding it alone, at an average of 3.5 bits, and the least
width that it alone can do with.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from geoquant.findings import Claim, Figure, Series, Table, Value
from geoquant.study.at_hand import at_hand
from geoquant.study.cases import RESNET20, STORIES, case_of, missing
from geoquant.study.declaration import PRESETS, Configuration, Preset, Study, register
from geoquant.study.judging import Finding, judged, spread
from geoquant.study.layers import ends_over_middle, layer_facts, rank_correlation, thirds
from geoquant.study.results import Result, Results
from geoquant.study.studies.bit_allocation import SOME_PHOTOGRAPHS

RISING, ENDS = "Curvature-Guided Transformer Quantization", "Curvature-Guided Bit Allocation"
APART = 0.25
"""Bits by which two parts of a net must differ to count as different."""
AVERAGE = 3.5
"""Bits of the plans, on average: between two widths, so that even a net of few layers has something to choose."""

SMALL: dict[str, Any] = {"images": 3000, "epochs": 3, "calibration": 128, "test": 250}
SOME: dict[str, Any] = {"images": 20_000, "epochs": 10, "calibration": 256, "test": 250}
ALL: dict[str, Any] = {"images": None, "epochs": 60, "calibration": 1024, "test": 250}
SIZES: dict[Preset, dict[str, Any]] = {"quick": SMALL, "laptop": SOME, "full": ALL}
NETS = {
    "digits_cnn": "digits",
    "mlp4_fashion_mnist": "fashion_mnist",
    "cnn4_cifar10": "cifar10",
    "few_bits_resnet": "cifar10",
}


def run(configuration: Configuration) -> dict[str, Any]:
    """Measure every layer of one net."""
    case = case_of(configuration)
    rows = layer_facts(case.model, case.calibration, configuration["average"], configuration["seed"])
    depth, bits = [row["depth"] for row in rows], [row["bits_exact"] for row in rows]
    return {
        "layers": len(rows),
        "correlation": rank_correlation(depth, bits),
        "correlation_alone": rank_correlation(depth, [row["bits_alone"] for row in rows]),
        "correlation_condition": rank_correlation([row["condition_number"] or 0 for row in rows], bits),
        "rows": rows,
    }


def configurations(preset: Preset) -> Iterator[Configuration]:
    """Yield the cells of a preset."""
    sizes = SIZES[preset]
    nets = {"digits_cnn": "digits", "mlp4_fashion_mnist": "fashion_mnist"} if preset == "quick" else NETS
    for seed in range({"quick": 1, "laptop": 3, "full": 5}[preset]):
        for net, data in nets.items():
            if preset != "quick" or at_hand(data):
                yield {"net": net, "data": data, "seed": seed, "average": AVERAGE, **_recipe(preset, net, data)}
    pretrained = {"seed": 0, "average": AVERAGE, "calibration": sizes["calibration"], "test": 250}
    yield {"net": RESNET20, "data": "cifar10", **pretrained}
    if preset != "quick":
        yield {"net": STORIES, "data": "TinyStories", **pretrained, "calibration": 64, "test": 8}


def _recipe(preset: Preset, net: str, data: str) -> dict[str, Any]:
    """Return how a net is trained and measured; at the scale of a laptop as in bit-allocation, which keeps the nets."""
    if net == "digits_cnn":
        return {**SIZES[preset], "images": None, "epochs": 20}
    shared = ("images", "epochs") if preset == "laptop" and data == "cifar10" else ()
    return {**SIZES[preset], **{name: SOME_PHOTOGRAPHS[name] for name in shared}}


def _name(cell: Result) -> str:
    return f"{cell['net']} on {cell['data']}"


Rows = Sequence[Mapping[str, Any]]


def _over_seeds(results: Results, value: Callable[[Rows], Any]) -> Iterator[tuple[str, list[Any]]]:
    """Yield each net with a value of its rows, per seed."""
    for _, cells in results.by("net", "data"):
        found = [value(cell.rows) for cell in cells]
        if found and found[0] is not None:
            yield _name(cells[0]), found


def rising(results: Results) -> Claim:
    """Compare the first third of the layers with the last."""
    findings = []
    for name, found in _over_seeds(results, lambda rows: thirds(rows, "bits_exact")):
        early, middle, late = (statistics.fmean(each) for each in zip(*found, strict=True))
        text = f"{name}: {early:.1f}, {middle:.1f} and {late:.1f} bits in the first, middle and last third"
        findings.append(Finding(text, late - early >= APART))
    return judged("Early layers need fewer bits, later layers need more", RISING, results, findings)


def falling(results: Results) -> Claim:
    """Ask for the opposite, so that the table can settle it."""
    findings = []
    for name, found in _over_seeds(results, lambda rows: thirds(rows, "bits_exact")):
        early, _, late = (statistics.fmean(each) for each in zip(*found, strict=True))
        findings.append(Finding(f"{name}: {early:.1f} against {late:.1f} bits", early - late >= APART))
    return judged("Early layers need more bits than late ones", ENDS, results, findings)


def ends(results: Results) -> Claim:
    """Compare both ends with what is between."""
    findings = []
    for name, found in _over_seeds(results, lambda rows: ends_over_middle(rows, "bits_exact")):
        text = f"{name}: {spread(found)} times the bits of the layers between"
        findings.append(Finding(text, statistics.fmean(found) >= 2))
    text = "The first and the last layer need 2–4 times the bits of the layers between"
    return judged(text, ENDS, results, findings)


def first_layer(results: Results) -> Claim:
    """Ask whether the first layer is one that can use fewer bits, as the source's table of a ResNet-18 says."""
    findings = []
    for name, found in _over_seeds(results, _first_over_rest):
        text = f"{name}: {spread(found, ' bits')} more than the mean of the others"
        findings.append(Finding(text, statistics.fmean(found) < 0))
    return judged("The first layer can use fewer bits than the others", RISING, results, findings)


def _first_over_rest(rows: Rows) -> float:
    return float(rows[0]["bits_exact"] - statistics.fmean(row["bits_exact"] for row in rows[1:]))


def over_depth(results: Results) -> Figure:
    """Draw the bits of the exact plan over depth, one line a net."""
    series = []
    for _, cells in results.by("net", "data"):
        rows = cells[0].rows
        bits = [statistics.fmean(cell.rows[place]["bits_exact"] for cell in cells) for place in range(len(rows))]
        notes = tuple(f"{row['layer']}, {row['weights']:,} weights" for row in rows)
        series.append(Series(_name(cells[0]), tuple(row["depth"] for row in rows), tuple(bits), (), notes))
    words = "; ".join(f"{each.name} from {each.y[0]:.1f} to {each.y[-1]:.1f}" for each in series)
    return Figure(
        "bits-over-depth",
        "lines",
        f"Bits of every layer in the exact plan of {AVERAGE} bits on average",
        "depth: 0 is the first layer, 1 the last",
        "bits",
        tuple(series),
        f"A line a net, from input to output. Bits of the first and the last layer: {words}.",
        note="Means over seeds. Small layers get many bits because theirs cost little.",
    )


def damage(results: Results) -> Figure:
    """Draw the damage of rounding each layer alone to 3 bits, per weight, over depth."""
    series = []
    for _, cells in results.by("net", "data"):
        rows = cells[0].rows
        values = tuple(max(row["kl_3"], 0.0) / row["weights"] or None for row in rows)
        series.append(Series(_name(cells[0]), tuple(row["depth"] for row in rows), values))
    return Figure(
        "damage-over-depth",
        "lines",
        "Damage per weight of rounding one layer to 3 bits",
        "depth: 0 is the first layer, 1 the last",
        "KL divergence from the float net, nats a prediction and weight",
        tuple(series),
        f"{len(series)} lines over depth, one a net; where it is high, a bit is worth most.",
        log_y=True,
        note="The first seed of each net.",
    )


def settled(results: Results) -> Table:
    """List, for every net, who is right."""
    rows: list[tuple[Value, ...]] = []
    for _, cells in results.by("net", "data"):
        found = [thirds(cell.rows, "bits_exact") for cell in cells]
        early, middle, late = (round(statistics.fmean(each), 2) for each in zip(*found, strict=True))
        first, last = (statistics.fmean(cell.rows[place]["bits_exact"] for cell in cells) for place in (0, -1))
        ratio = [each for each in (ends_over_middle(cell.rows, "bits_exact") for cell in cells) if each is not None]
        correlations = [cells.summary(name) for name in ("correlation", "correlation_alone")]
        so = "later need more" if late - early >= APART else "early need more" if early - late >= APART else "alike"
        rows.append(
            (
                _name(cells[0]),
                cells[0]["layers"],
                len(cells),
                early,
                middle,
                late,
                round(first, 2),
                round(last, 2),
                round(statistics.fmean(ratio), 2) if ratio else None,
                *(None if each is None else round(each.mean, 2) for each in correlations),
                so,
            )
        )
    columns = ("net", "layers", "seeds", "first third", "middle", "last third", "first layer", "last layer")
    more = ("ends over the rest", "rank correlation of depth and bits", "of depth and bits that suffice alone", "so")
    return Table("who-is-right", f"Bits by depth at an average of {AVERAGE}", (*columns, *more), tuple(rows))


DEPTH = register(
    Study(
        "depth",
        "Do early layers need more bits? Trained nets decide between two sources",
        f"{ENDS}; {RISING}",
        "One source says that early layers need fewer bits than late ones, another that the ends need most. Which is "
        "right on trained nets, where bits are given by measured damage?",
        {preset: partial(configurations, preset) for preset in PRESETS},
        run,
        claims=(rising, falling, ends, first_layer),
        figures=(over_depth, damage),
        tables=(settled,),
        unavailable=missing,
    )
)
