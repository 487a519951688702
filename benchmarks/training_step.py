"""What a training step in simulated low precision costs beside a float step, and what measuring costs.

    python benchmarks/training_step.py

Medians of interleaved steps in one process, in processor seconds, all threads together, so that a busy machine slows
all alike and waiting does not count; random images, batch 64. Ratios are what counts: weights, activations and
gradients in 4 bits against plain PyTorch, and the share of measurements at their pace.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from common import parser, write_results
from geoquant.models.zoo import ZOO
from geoquant.training import adaptive
from geoquant.training.schedules import NumGeom
from geoquant.training.schedules.protocol import CURVATURE, NOISE

NETS = {"few_bits_cnn2": (1, 28), "few_bits_cnn4": (1, 28), "few_bits_resnet": (3, 32)}


def timed(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def measure(name: str, steps: int, batch: int) -> dict[str, Any]:
    """Return medians in seconds, and their ratios, for one net."""
    channels, size = NETS[name]
    torch.manual_seed(0)
    images = torch.randn(batch, channels, size, size).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch,))
    model = ZOO[name]().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    def probe() -> torch.Tensor:
        return F.cross_entropy(model(images[:32]), labels[:32])

    schedule = NumGeom(curved=True)  # which measures noise and curvature; without it noise alone
    low = adaptive(model, optimizer, "uniform:int4")
    measured = adaptive(model, optimizer, schedule, probe=probe)
    times: dict[str, list[float]] = {"float": [], "int4": [], "noise": [], "curvature": []}
    for _ in range(steps):
        times["float"].append(timed(step))
        with low:
            times["int4"].append(timed(step))
    with measured:
        step()  # the first measurement looks at every layer, those that are timed at one
        for what in (NOISE, CURVATURE):
            times[what] = [
                timed(lambda what=what: measured.measure(frozenset({what}))) for _ in range(max(3, steps // 4))
            ]
    medians = {key: statistics.median(values) for key, values in times.items()}
    whole = medians["int4"] + (medians[NOISE] + medians[CURVATURE]) / schedule.every
    return {
        "seconds": medians,
        "overhead": medians["int4"] / medians["float"],
        **{f"{what}_share": medians[what] / schedule.every / whole for what in (NOISE, CURVATURE)},
    }


def main() -> None:
    made = parser(__doc__ or "", "training_step")
    made.add_argument("--steps", type=int, default=40)
    made.add_argument("--batch", type=int, default=64)
    arguments = made.parse_args()
    torch.set_num_threads(arguments.threads)
    found = {name: measure(name, arguments.steps, arguments.batch) for name in NETS}
    for name, row in found.items():
        shares = f"noise {row['noise_share']:.1%}, curvature {row['curvature_share']:.1%} of the time"
        costs = f"4-bit step / float step {row['overhead']:.2f}, {shares}"
        print(f"{name:18s} {costs}")
    write_results(arguments, {"nets": found})


if __name__ == "__main__":
    main()
