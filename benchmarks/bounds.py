"""How far is each bound on the quantized net's output change from the worst input found?

    python benchmarks/bounds.py
    python benchmarks/bounds.py --nets cnn4 resnet20 --weights cifar10_resnet20.safetensors --images 3

needs MNIST, Fashion-MNIST and CIFAR-10 ($GEOQUANT_DATA_DIR or the Hub). MLP-2, MLP-4 and CNN-4 are trained here;
weights are rounded to nearest, per channel, max-abs. Boxes of ±1/255 (or --radius) in pixel units around test images;
the gap is bound over worst change found by sign-gradient ascent or by sampling, for the largest logit change.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common import parser, write_results
from geoquant.bounds import attacked_error, differential_bound, error_estimate, sampled_error, trace_functionals
from geoquant.data import load_images
from geoquant.grids import Grid
from geoquant.models import find_sites, get_weight, load_weights_, set_weight_
from geoquant.models.zoo import mlp2_mnist, mlp4_fashion_mnist, resnet20_cifar10, strided_cnn4_cifar10
from geoquant.training import fit_classifier_

SETS = {"mlp2": "mnist", "mlp4": "fashion_mnist", "cnn4": "cifar10", "resnet20": "cifar10"}
EPOCHS = {"mlp2": 5, "mlp4": 6, "cnn4": 4}


NETS: dict[str, Callable[[], nn.Module]] = {
    "mlp2": mlp2_mnist,
    "mlp4": mlp4_fashion_mnist,
    "cnn4": strided_cnn4_cifar10,
    "resnet20": resnet20_cifar10,
}


def trained(name: str, arguments: argparse.Namespace) -> nn.Module:
    """Train a net from the seed, or read its weights."""
    torch.manual_seed(arguments.seed)
    model = NETS[name]()
    if name == "resnet20":
        load_weights_(model, arguments.weights)
        return model.eval().to(memory_format=torch.channels_last)
    inputs, labels = load_images(SETS[name], "train").tensors("none")
    fit_classifier_(model, inputs, labels, epochs=EPOCHS[name], seed=arguments.seed, learning_rate=2e-3)
    return model.eval()


def rounded(model: nn.Module, bits: int) -> nn.Module:
    """Round every weight to nearest on the per-channel max-abs grid."""
    twin, grid = copy.deepcopy(model), Grid.parse(f"int{bits}:maxabs")
    for site in find_sites(twin):
        matrix = grid.quantize(site.matrix(get_weight(twin, site))).dequantize()
        set_weight_(twin, site, site.restore(matrix))
    return twin


def measure(
    name: str, model: nn.Module, bits: int, inputs: Tensor, radius: Tensor, args: argparse.Namespace
) -> dict[str, Any]:
    """Return gaps and times of every bound on one net at one width."""
    quantized = rounded(model, bits)
    samples = max(args.samples // len(inputs), 1)
    attacked = attacked_error(model, quantized, inputs, radius, restarts=args.restarts)
    sampled = sampled_error(model, quantized, inputs, radius, samples=samples)
    observed = torch.maximum(attacked, sampled)
    ball = float(radius.expand_as(inputs[0]).square().sum().sqrt())

    def zonotopes(arithmetic: str, symbols: int | None) -> Callable[[], Tensor]:
        return lambda: (
            differential_bound(model, quantized, inputs, radius, symbols=symbols, arithmetic=arithmetic).largest
        )

    methods: dict[str, Callable[[], Tensor]] = {
        "pairs of zonotopes": zonotopes("float64", args.symbols),
        "pairs of zonotopes, float32 runs covered": zonotopes("float32", args.symbols),
        "plain intervals of the pair": zonotopes("float64", 0),
        "product of norms": lambda: torch.tensor([one() for one in trace_functionals(model, quantized, inputs, ball)]),
        "first-order estimate (no bound)": lambda: error_estimate(model, quantized, inputs).values,
    }
    rows = []
    for method, bound in methods.items():
        start = time.perf_counter()
        values = bound().double()
        rows.append(row(method, values / observed, values, (time.perf_counter() - start) / len(inputs)))
        print(f"{name:9} {bits} bits  {method:42} gap {rows[-1]['median_gap']:<12g} max {rows[-1]['max_gap']:<12g}")
    found = {
        "sampled_points": samples * len(inputs),
        "attacked_points": 20 * args.restarts * len(inputs),
        "median_worst_change_found": round(float(observed.median()), 6),
        "share_found_by_attack": float((attacked >= sampled).double().mean()),
    }
    return {"net": name, "bits": bits, **found, "rows": rows}


def row(method: str, gaps: Tensor, values: Tensor, seconds: float) -> dict[str, Any]:
    return {
        "method": method,
        "median_gap": significant(statistics.median(gaps.tolist())),
        "mean_gap": significant(float(gaps.mean())),
        "max_gap": significant(float(gaps.max())),
        "median_value": significant(float(values.median())),
        "exceeded_by_found_points": int((gaps < 1).sum()),
        "seconds_per_image": round(seconds, 4),
    }


def significant(value: float) -> float:
    return value if value == 0 or not math.isfinite(value) else round(value, 3 - math.floor(math.log10(abs(value))))


def main() -> None:
    made = parser(__doc__ or "", "bounds")
    made.add_argument("--nets", nargs="+", choices=list(NETS), default=["mlp2", "mlp4"])
    made.add_argument("--bits", nargs="+", type=int, default=[8, 4])
    made.add_argument("--images", type=int, default=100, help="test images, the first ones")
    made.add_argument("--radius", type=float, default=1.0, help="half width of the boxes, in 1/255")
    made.add_argument("--samples", type=int, default=100_000, help="random points per net and width, over all images")
    made.add_argument("--restarts", type=int, default=2, help="attacks per logit, direction and image")
    made.add_argument(
        "--symbols", type=int, help="cap on the symbols of a tensor; as many as fit into 2 GiB if not given"
    )
    made.add_argument("--weights", type=Path, help="safetensors of the CIFAR-10 ResNet-20")
    made.add_argument("--seed", type=int, default=0)
    arguments = made.parse_args()
    torch.set_num_threads(arguments.threads)
    results = []
    for name in arguments.nets:
        model = trained(name, arguments)
        normalize = "imagenet" if name == "resnet20" else "none"
        images = load_images(SETS[name], "test")
        inputs, labels = images.tensors(normalize, channels_last=name == "resnet20")
        with torch.no_grad():
            accuracy = float((model(inputs[:2000]).argmax(1) == labels[:2000]).double().mean())
        print(f"{name}: accuracy {accuracy:.4f} on 2,000 test images")
        scale = torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1) if name == "resnet20" else torch.tensor(1.0)
        radius = arguments.radius / 255 / scale.double()
        for bits in arguments.bits:
            measured = measure(name, model, bits, inputs[: arguments.images], radius, arguments)
            results.append({**measured, "accuracy": accuracy, "radius_in_pixels": arguments.radius})
            write_results(arguments, {"results": results})  # what is measured is kept


if __name__ == "__main__":
    main()
