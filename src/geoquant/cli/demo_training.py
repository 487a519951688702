"""The last part of the demo: the digits again, trained in few bits from the start."""

from __future__ import annotations

from typing import Any

import torch

from geoquant.cli.inputs import fast
from geoquant.data import digits
from geoquant.evaluation import evaluate
from geoquant.models.zoo import digits_cnn
from geoquant.plan import align
from geoquant.training import Settings, train_

COMPARED = ("float32", "uniform:int8", "numgeom")
EPOCHS = 6


def train_in_few_bits(seed: int) -> tuple[str, list[dict[str, Any]]]:
    """Train in float32, in eight bits and with adaptive precision; return a table and the figures behind it."""
    inputs, labels = digits("train").tensors("dataset")
    test = digits("test").batches(256, normalize="dataset")
    rows, figures = [("training", "accuracy", "bits per operation", "changes of precision")], []
    for schedule in COMPARED:
        torch.manual_seed(seed)
        model = fast(digits_cnn())
        run = train_(model, inputs, labels, Settings(schedule, EPOCHS, seed=seed))
        accuracy, bits = evaluate(model, test).accuracy.value, run.precision.operations.average_bits
        changes = len(run.precision.log.changes) - len(run.precision.layers)
        rows.append((schedule, f"{100 * accuracy:.1f} %", f"{bits:.2f}", str(changes)))
        figures.append({"schedule": schedule, "accuracy": accuracy, "average_bits": bits, "changes": changes})
    return align(rows, (False, True, True, True)), figures
