"""Draw the figures of training in few bits from the cells that `benchmarks/training.py` left.

    python benchmarks/training_pictures.py --preset laptop

For each net: accuracy against bit-operations with the Pareto frontier, the schedule as a heatmap of step and layer,
    losses
at step 1,000 (or the last), gradient and curvature beside precision over time, and curvature against precision.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

from common import HERE
from geoquant.training.numerics import level
from training import HISTOGRAM_STEP, NETS, PRESETS, folder

PICTURES = HERE.parent / "docs" / "images"
Cells = list[dict[str, Any]]


def read(preset: str, net: str) -> Cells:
    """Return the cells of one net, those with default options first."""
    found = [json.loads(path.read_text()) for path in sorted(folder(preset).glob("*.json"))]
    mine = [cell for cell in found if cell["configuration"]["net"] == net]
    return sorted(mine, key=lambda cell: (cell["configuration"]["options"] != "{}", cell["configuration"]["seed"]))


def label(cell: dict[str, Any]) -> str:
    """Name a method with what distinguishes it."""
    one = cell["configuration"]
    more = "" if one["options"] == "{}" else " " + one["options"].strip("{}").replace('"', "")
    return f"{one['method']}, {one['levels']}{', nearest' if one['rounding'] == 'nearest' else ''}{more}"


def chosen(cells: Cells, method: str) -> dict[str, Any] | None:
    """Return the first fine cell of a method with stochastic rounding, its coarse one when there is none."""
    mine = [
        c for c in cells if c["configuration"]["method"] == method and c["configuration"]["rounding"] == "stochastic"
    ]
    return min(mine, key=lambda c: c["configuration"]["levels"] != "fine", default=None)


def widths(cell: dict[str, Any]) -> tuple[list[str], np.ndarray]:
    """Return the layers, and (layers, steps) forward bits."""
    changes = cell["log"]["changes"]
    layers = list(dict.fromkeys(change["layer"] for change in changes))
    steps = 10 * len(cell["losses"])
    bits = np.zeros((len(layers), steps))
    for change in changes:
        bits[layers.index(change["layer"]), change["step"] :] = level(change["after"]["weights"]).bits
    return layers, bits


def heatmap(axes: Axes, cell: dict[str, Any]) -> None:
    layers, bits = widths(cell)
    image = axes.imshow(bits, aspect="auto", cmap="turbo", norm=LogNorm(2, 32), interpolation="nearest")
    axes.set_yticks(range(len(layers)), layers, fontsize=7)
    axes.set(xlabel="step", title=f"forward bits: {label(cell)}")
    axes.figure.colorbar(image, ax=axes, ticks=[2, 3, 4, 6, 8, 16, 32], format="%d")


def pareto(axes: Axes, cells: Cells) -> None:
    groups: dict[str, Cells] = defaultdict(list)
    for cell in cells:
        groups[label(cell)].append(cell)
    points = {
        name: (np.mean([c["single"] for c in group]), np.mean([c["accuracy"] for c in group]))
        for name, group in groups.items()
    }
    for name, (cost, accuracy) in points.items():
        kind = "*" if name.startswith("numgeom") else "o" if name.startswith("uniform") else "^"
        axes.plot(cost, accuracy, kind, color="C3" if kind == "*" else "C0" if kind == "o" else "C7")
        axes.annotate(name, (cost, accuracy), fontsize=4.5, xytext=(3, 2), textcoords="offset points")
    best, front = -1.0, []
    for cost, accuracy in sorted(points.values()):
        if accuracy > best:
            best = accuracy
            front.append((cost, accuracy))
    axes.step(*zip(*front, strict=True), where="post", color="C3", linewidth=0.8)
    top = max(accuracy for _, accuracy in points.values())
    axes.set(xscale="log", xlabel="bit-operations, wider operand", ylabel="accuracy, %", ylim=(top - 8, top + 0.5))
    axes.set_title("accuracy against bit-operations (what fell far below is not shown)", fontsize=8)


def histogram(axes: Axes, cells: Cells) -> None:
    names = ("uniform:int8", "uniform:int6", "uniform:int4", "uniform:int3", "uniform:int2", "numgeom")
    for place, name in enumerate(names):
        mine = [c for c in cells if c["configuration"]["method"] == name and c["configuration"]["options"] == "{}"]
        for cell in mine:
            nearest = cell["configuration"]["rounding"] == "nearest"
            loss = cell["loss_at_histogram"]
            if loss is None:
                axes.plot(place, 10, "x", color="k")
            else:
                axes.plot(place + 0.1 * nearest, loss, "s" if nearest else "o", color="C1" if nearest else "C0")
    axes.set_xticks(range(len(names)), names, rotation=30, fontsize=7)
    axes.set(
        yscale="log", ylabel="loss", title=f"loss at step {HISTOGRAM_STEP:,} or the last (squares: nearest, ×: NaN)"
    )


def over_time(axes: Axes, cell: dict[str, Any]) -> None:
    layers, bits = widths(cell)
    seen = cell["log"]["seen"]
    steps = [step for step, _ in seen]
    gradients = [np.sqrt(sum((facts[name][0] or 0) ** 2 for name in layers)) for _, facts in seen]
    axes.plot(steps, gradients, label="gradient norm")
    if seen and all(facts[name][1] is not None for _, facts in seen for name in layers):
        axes.plot(steps, [max(facts[name][1] for name in layers) for _, facts in seen], label="largest curvature")
    axes.set(yscale="log", xlabel="step", title=f"gradient, curvature and mean forward bits: {label(cell)}")
    axes.legend(fontsize=7, loc="upper left")
    other = axes.twinx()
    other.plot(bits.mean(0), color="C3")
    other.set_ylabel("bits", color="C3")


def scatter(axes: Axes, cells: Cells) -> None:
    for name in ("numgeom", "combined", "seed18", "sound"):
        cell = chosen(cells, name)
        if cell is None:
            continue
        layers, bits = widths(cell)
        pairs = [
            (facts[layer][1], bits[place, min(step, bits.shape[1] - 1)])
            for step, facts in cell["log"]["seen"]
            for place, layer in enumerate(layers)
            if facts[layer][1]
        ]
        if pairs:
            axes.plot(*zip(*pairs, strict=True), ".", alpha=0.5, label=label(cell))
    axes.set(
        xscale="log", yscale="log", xlabel="curvature of the layer", ylabel="forward bits", title="curvature and bits"
    )
    axes.set_yticks([2, 3, 4, 6, 8, 16, 32], ["2", "3", "4", "6", "8", "16", "32"])
    axes.legend(fontsize=7)


def draw(net: str, cells: Cells, target: Path) -> None:
    """Draw one page for a net."""
    figure, axes = plt.subplots(3, 2, figsize=(13, 14), layout="constrained")
    pareto(axes[0, 0], cells)
    histogram(axes[0, 1], cells)
    for place, name in ((axes[1, 0], "numgeom"), (axes[1, 1], "seed18")):
        cell = chosen(cells, name)
        if cell is not None:
            heatmap(place, cell)
    cell = chosen(cells, "numgeom")
    if cell is not None:
        over_time(axes[2, 0], cell)
    scatter(axes[2, 1], cells)
    figure.suptitle(net)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=130)
    plt.close(figure)


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--preset", choices=sorted(PRESETS), default="laptop")
    made.add_argument("--output", type=Path, default=PICTURES, help="folder for the pictures")
    arguments = made.parse_args()
    plt.switch_backend("agg")
    for net in NETS:
        cells = read(arguments.preset, net)
        if cells:
            target = arguments.output / f"training_{net.lower().replace('-', '')}.png"
            draw(net, cells, target)
            print(f"wrote {target}")


if __name__ == "__main__":
    main()
