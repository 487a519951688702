"""How close and how fast are exported ONNX files in ONNX Runtime, against float32 in the same run?

    python benchmarks/onnx_latency.py --threads 1 --weights cifar10_resnet20.safetensors

A stack of linear layers at 4, 2 and 8 bits, and the ResNet-20 at 8 and 7 bits with static 8-bit activations (random
weights and images without ``--weights``: its times are the same), at 8 bits in a file for any processor and in one for
VNNI. For each: difference of logits from the quantized torch model, exactly and as ONNX Runtime runs by default; bytes
of the file; median times at batches of 1, 16 and 64, float32 and quantized taking turns. With one thread, times are
those of the processor, so that other work on the machine does not count; with several they are the clock's. Which
integer units the processor has is written beside them.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import geoquant as gq
from common import parser, write_results
from geoquant.data import load_data
from geoquant.export import int8_overflows
from geoquant.export.onnx_session import feeds, open_session, run_exactly
from geoquant.models import inference, load_weights_
from geoquant.models.zoo import resnet20_cifar10
from geoquant.plan import uniform_plan
from geoquant.quantize import quantize

BATCHES = (1, 16, 64)
UNITS = ("avx2", "avx512_f", "avx_vnni", "avx512_vnni", "amx_int8")


@dataclass(frozen=True)
class Case:
    """A net, its grids, and samples as it takes them; calibration where activations are static; options of the file."""

    name: str
    make: Callable[[], nn.Module]
    grid: str
    samples: Tensor
    activations: Any = None
    calibration: Any = None
    options: dict[str, str] = field(default_factory=dict)


def stack(width: int, depth: int) -> nn.Module:
    torch.manual_seed(0)
    layers = [part for _ in range(depth) for part in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, 10)).eval()


def cases(arguments: argparse.Namespace) -> list[Case]:
    vectors = torch.randn(max(BATCHES), arguments.width, generator=torch.Generator().manual_seed(1))

    def linears() -> nn.Module:
        return stack(arguments.width, arguments.depth)

    grids = ("int4:group128", "int4:group32", "int2", "int8")
    found = [Case(f"linears-{grid}", linears, grid, vectors) for grid in grids]
    images = torch.randn(max(BATCHES), 3, 32, 32, generator=torch.Generator().manual_seed(2))
    calibration: Any = [images]
    if arguments.weights is not None:
        calibration = load_data("cifar10", "train", normalize="imagenet", batch_size=128, limit=arguments.images)
        size = max(BATCHES)
        images = load_data("cifar10", "train", normalize="imagenet", batch_size=size, limit=size, seed=9)[0][0]

    def resnet() -> nn.Module:
        net = resnet20_cifar10().eval()
        if arguments.weights is not None:
            load_weights_(net, arguments.weights)
        return net

    everywhere = {"re:.*": "int8:affine"}
    for grid, kernels in (("int8", "portable"), ("int8", "vnni"), ("int7", "portable")):
        name = f"resnet20-{grid}-static" + ("-vnni" if kernels == "vnni" else "")
        found.append(Case(name, resnet, grid, images, everywhere, calibration, {"kernels": kernels}))
    return [case for case in found if arguments.only in case.name]


def measure(case: Case, arguments: argparse.Namespace) -> dict[str, Any]:
    net = case.make()
    plain = quantize(case.make(), uniform_plan(net, "fp32"))
    plan = uniform_plan(net, case.grid, activations=case.activations)
    net = quantize(net, plan, case.calibration, rounding="nearest", norms="none")
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{name}.onnx" for name in ("float32", "quantized")]
        example = case.samples[:2]
        size = gq.export.onnx(plain, uniform_plan(plain, "fp32"), paths[0], example=example).bytes
        written = gq.export.onnx(net, plan, paths[1], example=example, **case.options)
        with inference(net):
            expected = net(case.samples)
        fast = open_session(paths[1], threads=arguments.threads)
        default = torch.from_numpy(fast.run(None, feeds(fast, case.samples))[0])
        sessions = [open_session(paths[0], threads=arguments.threads), fast]
        row = {
            "float32_bytes": size,
            "onnx_bytes": written.bytes,
            "artifact_bytes": plan.bytes,
            "stored": sorted({layer.stored for layer in written.layers}),
            "exact_difference": _difference(run_exactly(paths[1])(case.samples), expected),
            "default_difference": _difference(default, expected),
        }
        clock = time.thread_time if arguments.threads == 1 else time.perf_counter
        for size in BATCHES:
            row[f"batch{size}"] = turns(sessions, case.samples[:size], arguments.repeats, clock)
        return row


def _difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference of a logit as a share of the largest logit."""
    return float((found - expected).abs().max() / expected.abs().max())


def turns(sessions: list[Any], samples: Tensor, repeats: int, clock: Callable[[], float]) -> dict[str, float]:
    """Return median milliseconds of float32 and quantized, run in turns, and how many times faster."""
    fed = [feeds(session, samples) for session in sessions]
    seconds: list[list[float]] = [[], []]
    for index in range(repeats + 3):
        for place, session in enumerate(sessions):
            start = clock()
            session.run(None, fed[place])
            if index >= 3:
                seconds[place].append(clock() - start)
    float32, quantized = (1000 * statistics.median(each) for each in seconds)
    return {"float32_ms": float32, "quantized_ms": quantized, "ratio": float32 / quantized}


def processor() -> dict[str, Any]:
    """Return which of `UNITS` torch finds in this processor, and whether ONNX Runtime's int8 kernels overflow on it."""
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return {"units": [name for name in UNITS if found.get(name)], "int8_overflows": int8_overflows()}


def main() -> None:
    made = parser(__doc__ or "", "onnx_latency")
    made.add_argument("--weights", type=Path, help="of the ResNet-20 for CIFAR-10, as safetensors")
    made.add_argument("--images", type=int, default=256, help="calibration images")
    made.add_argument("--width", type=int, default=4096, help="of the linear layers")
    made.add_argument("--depth", type=int, default=3, help="linear layers of that width")
    made.add_argument("--repeats", type=int, default=51, help="runs per median")
    made.add_argument("--only", default="", help="cases whose name holds this")
    arguments = made.parse_args()
    torch.set_num_threads(arguments.threads)
    rows: dict[str, Any] = {}
    for case in cases(arguments):
        rows[case.name] = measure(case, arguments)
        print(case.name, rows[case.name], flush=True)
    write_results(arguments, {"processor": processor(), "cases": rows})


if __name__ == "__main__":
    main()
