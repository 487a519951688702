"""The 3-layer MLP on MNIST: guided against uniform at 8 and 6 bits, and at 4, 3 and 2 where it can show.

    python benchmarks/mnist_mlp.py

needs MNIST ($GEOQUANT_DATA_DIR or the Hub). The source's guided row is condition number + proportional
(docs/sources.md); ours stands beside it. Five trained nets (seeds), figures on the 10,000 test images.
"""

from __future__ import annotations

import statistics
from collections import defaultdict

import torch

from common import parser, write_results
from geoquant.data import load_images
from geoquant.models.zoo import mlp3_mnist
from geoquant.report import measure_point
from geoquant.sensitivity import profile
from geoquant.study.studies.transformer_quantization.cells import PREDICTORS, WIDTHS, grid_of, plans
from geoquant.training import fit_classifier_


def run(seed: int, epochs: int) -> dict[tuple[str, int], float]:
    """Train one net and return accuracy in percent per (method, width)."""
    torch.manual_seed(seed)
    model = mlp3_mnist()
    train, test = load_images("mnist", "train"), load_images("mnist", "test")
    inputs, labels = train.tensors("dataset")
    fit_classifier_(model, inputs, labels, epochs=epochs, seed=seed)
    batches = test.batches(1000, normalize="dataset")
    calibration = train.batches(128, limit=512, seed=seed, normalize="dataset")
    grids = [grid_of(bits) for bits in range(2, 9)]
    measured = profile(model, calibration, grids=grids, predictors=PREDICTORS, seed=seed)
    result = {("float", 32): 100 * measure_point(model, None, batches, "float", "").accuracy.value}
    for bits in WIDTHS:
        for name, plan in plans(measured, bits).items():
            result[(name, bits)] = 100 * measure_point(model, plan, batches, name, "").accuracy.value
    return result


def main() -> None:
    made = parser(__doc__ or "", "mnist_mlp")
    made.add_argument("--seeds", type=int, default=5)
    made.add_argument("--epochs", type=int, default=3)
    arguments = made.parse_args()
    torch.set_num_threads(arguments.threads)
    gathered: dict[tuple[str, int], list[float]] = defaultdict(list)
    for seed in range(arguments.seeds):
        for key, accuracy in run(seed, arguments.epochs).items():
            gathered[key].append(accuracy)
    rows = [
        {
            "method": name,
            "bits": bits,
            "accuracy": round(statistics.mean(values), 2),
            "spread": round(statistics.stdev(values), 2) if len(values) > 1 else 0.0,
            "values": [round(value, 2) for value in values],
        }
        for (name, bits), values in gathered.items()
    ]
    for row in rows:
        print(f"{row['bits']:>3} {row['method']:45s} {row['accuracy']:6.2f} ± {row['spread']}")
    write_results(arguments, {"rows": rows})


if __name__ == "__main__":
    main()
