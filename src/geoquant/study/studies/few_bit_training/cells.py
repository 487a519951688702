"""One training run in few bits: how good it gets, what it spends, and what precision did meanwhile.

Methods see equal data and epochs. What may be chosen is the source's levels (4, 8, 16 and 32 bits: "coarse") or finer
ones. Weights and activations round to nearest always; what `rounding` says holds for gradients and for what the
optimizer keeps.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from geoquant.data import load_images
from geoquant.evaluation import evaluate
from geoquant.models.zoo import ZOO
from geoquant.training import COARSE, FINE, Schedule, make_schedule
from geoquant.training.numerics import level
from geoquant.training.run import Settings, TrainingRun, train_

ADAPTIVE = ("cpt", "gradient", "curvature", "combined", "seed18", "sound", "numgeom")
HISTOGRAM_STEP = 1000
SAMPLES = 40
"""Moments of a run at which precision and loss are kept."""


def run(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Train, judge on test images, and return what claims and figures need."""
    inputs, labels, judged = _data(configuration)
    torch.manual_seed(configuration["seed"])
    model = ZOO[configuration["net"]]().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if "start" in configuration:
        _draw_weights_(model, configuration["start"])
    how = "nearest" if configuration["rounding"] == "nearest" else "stochastic"
    settings = Settings(
        configuration["method"],
        configuration["epochs"],
        configuration["batch"],
        seed=configuration["seed"],
        backward=how,  # type: ignore[arg-type]
        update=how,  # type: ignore[arg-type]
        check_every=25,
    )
    start = time.process_time()
    found = train_(model, inputs, labels, settings, schedule_of(configuration))
    seconds = time.process_time() - start
    whole = all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())
    judgement = evaluate(model, judged) if whole else None
    return {
        "accuracy": 0.0 if judgement is None else 100 * judgement.accuracy.value,
        "cross_entropy": None if judgement is None else judgement.cross_entropy.value,
        "seconds_training": seconds,
        **spent(found),
        **course(found),
    }


def schedule_of(configuration: Mapping[str, Any]) -> Schedule:
    """Return the schedule of a cell, with the levels that it may use.

    >>> cell = {"method": "numgeom", "levels": "coarse", "options": {}}
    >>> schedule_of(cell) == make_schedule("numgeom", levels=COARSE)
    True
    """
    options = dict(configuration["options"])
    if configuration["method"].partition(":")[0] in ADAPTIVE:
        options["levels"] = COARSE if configuration["levels"] == "coarse" else FINE
    return make_schedule(configuration["method"], **options)


@torch.no_grad()
def _draw_weights_(model: nn.Module, start: str) -> None:
    """Draw the weights of linear layers and convolutions by an initializer of torch for ReLU; biases start at 0."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            getattr(nn.init, f"{start}_")(module.weight, nonlinearity="relu")
            if module.bias is not None:
                module.bias.zero_()


def _data(configuration: Mapping[str, Any]) -> tuple[Tensor, Tensor, Any]:
    """Return training images, labels, and the test images in batches."""
    train, images = load_images(configuration["data"], "train"), configuration["images"]
    if images is not None and images < len(train):
        train = train.split_off(images, seed=0)[1]
    test = load_images(configuration["data"], "test")
    return *train.tensors(), test.batches(500, configuration["test"], seed=0)


def spent(found: TrainingRun) -> dict[str, Any]:
    """Return what a run cost, and how the descent condition fared."""
    operations, practice = found.precision.operations, found.practice.state_dict()
    return {
        "bit_operations": operations.total,
        "bit_operations_product": operations.total_product,
        "average_bits": operations.average_bits,
        "state_bytes": found.precision.bytes["state"],
        "anomalies": len(found.precision.log.anomalies),
        "promised_down": practice["promised"][0],
        "promised_up": practice["promised"][1],
        "unpromised_down": practice["unpromised"][0],
        "unpromised_up": practice["unpromised"][1],
        "gradient_error": _median(practice["ratios"]),
        "rules": practice["rules"],
    }


def _median(values: list[float]) -> float | None:
    known = [value for value in values if math.isfinite(value)]
    return statistics.median(known) if known else None


def course(found: TrainingRun) -> dict[str, Any]:
    """Return losses and precision at some steps of the run."""
    losses = [loss if math.isfinite(loss) else None for loss in found.losses]
    layers, widths = forward_bits(found)
    facts = dict(found.precision.log.seen)
    moments = sorted({round(at * (len(losses) - 1) / (SAMPLES - 1)) for at in range(SAMPLES)})
    rows = []
    for step in moments:
        known = facts[max((at for at in facts if at <= step), default=min(facts))] if facts else {}
        bits = [width[step] for width in widths]
        norms = [known.get(layer, (None, None)) for layer in layers]
        rows.append(
            {"step": step, "loss": _around(losses, step), "bits": sum(bits) / max(len(bits), 1), **_sizes(norms)}
        )
    last = facts[max(facts)] if facts else {}
    return {
        "loss_at_histogram": losses[min(HISTOGRAM_STEP, len(losses)) - 1],
        "steps": len(losses),
        "layers": layers,
        "moments": moments,
        "schedule": [[width[step] for step in moments] for width in widths],
        "curvatures": [last.get(layer, (None, None))[1] for layer in layers],
        "rows": rows,
    }


def forward_bits(found: TrainingRun) -> tuple[list[str], list[list[int]]]:
    """Return the layers, and the bits of their weights in the forward pass at every step."""
    changes = found.precision.log.changes
    layers = list(dict.fromkeys(change.layer for change in changes))
    widths = [[0] * len(found.losses) for _ in layers]
    for change in changes:
        row = widths[layers.index(change.layer)]
        row[change.step :] = [level(change.after.weights).bits] * max(len(row) - change.step, 0)
    return layers, widths


def _around(losses: list[float | None], step: int) -> float | None:
    """Return the mean loss of the steps around one, so that minibatches do not drown the course."""
    near = [loss for loss in losses[max(step - 5, 0) : step + 6] if loss is not None]
    return sum(near) / len(near) if near else None


def _sizes(norms: list[Any]) -> dict[str, float | None]:
    gradients = [gradient for gradient, _ in norms if gradient is not None]
    curvatures = [curvature for _, curvature in norms if curvature is not None]
    return {
        "gradient_norm": math.sqrt(sum(each**2 for each in gradients)) if gradients else None,
        "largest_curvature": max(curvatures, default=None),
    }
