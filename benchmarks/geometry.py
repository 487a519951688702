"""Traces of ResNet-20 on CIFAR-10: seconds, standard errors, memory, and PyHessian beside it.

    python benchmarks/geometry.py --weights cifar10_resnet20.safetensors [--pyhessian DIR]

needs CIFAR-10 ($GEOQUANT_DATA_DIR or the Hub); 512 training images with labels. Every part runs in a process of
its own on the same images. DIR is a folder that holds the package `pyhessian` (pip install --no-deps --target DIR
pyhessian); without it that part is left out and says so. Memory is the growth of the resident set over the
loaded model and images, sampled every 2 ms.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from common import parser, write_results
from geoquant.data import load_data
from geoquant.geometry import gauss_newton_traces, hessian_traces, kink_density, make_objective, spectral_norm
from geoquant.geometry.evidence import RunningMean
from geoquant.geometry.hutchinson import ROUND, probe_traces
from geoquant.models import find_sites, load_model, observe

MODEL = "geoquant.models.zoo:resnet20_cifar10"
BATCH = 128
EPOCH = 50_000  # images of the CIFAR-10 train split
TARGET = 0.05  # the relative standard error asked for

Batches = list[tuple[Tensor, Tensor]]
Part = Callable[[nn.Module, Batches, argparse.Namespace], dict[str, Any]]


@contextmanager
def peak_memory() -> Iterator[Callable[[], float]]:
    """Yield a function that says by how many MB the resident set has grown at most since the start."""
    process, done = psutil.Process(), threading.Event()
    start = peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, process.memory_info().rss)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: (peak - start) / 2**20
    finally:
        done.set()
        thread.join()


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that `work` takes, and its answer."""
    start = time.perf_counter()
    answer = work()
    return time.perf_counter() - start, answer


def training_step(model: nn.Module, batches: Batches, arguments: argparse.Namespace) -> dict[str, Any]:
    """Forward, backward and SGD with momentum in train mode: what everything else is compared with."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        for x, y in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

    with peak_memory() as grown:
        step()
        seconds = [timed(step)[0] for _ in range(arguments.repeats)]
        memory = grown()
    images = sum(len(y) for _, y in batches)
    return {"memory_mb": memory, "images_per_second": images / statistics.median(seconds)}


def exact_traces(model: nn.Module, batches: Batches, arguments: argparse.Namespace) -> dict[str, Any]:
    """Exact Gauss-Newton traces of all layers, which here are the Hessian's."""
    sites = find_sites(model)
    with peak_memory() as grown:
        seconds, traces = timed(lambda: gauss_newton_traces(model, batches, sites))
        memory = grown()
    again = [timed(lambda: gauss_newton_traces(model, batches, sites))[0] for _ in range(arguments.repeats - 1)]
    whole, hessian = timed(lambda: hessian_traces(model, batches, sites))
    return {
        "memory_mb": memory,
        "seconds": statistics.median([seconds, *again]),
        "seconds_hessian_traces": whole,
        "all_exact": all(trace.exact for trace in hessian.values()),
        "largest_difference": max(abs(hessian[name].value / trace.value - 1) for name, trace in traces.items()),
        "traces": {name: trace.value for name, trace in traces.items()},
    }


def _probed(model: nn.Module, batches: Batches, seconds: float, part: Any, shared: bool) -> dict[str, Any]:
    """Probe for about `seconds`; say what each layer's standard error is then, and the probes that 5 % would need."""
    sites = find_sites(model)
    objective = make_objective(model, batches, sites)
    exact = gauss_newton_traces(model, batches, sites)
    one_round, _ = timed(lambda: probe_traces(objective, part, ROUND, 1, lambda _: False, shared=shared))
    rounds = max(2, int(seconds / one_round))
    spent, (mean, _) = timed(lambda: probe_traces(objective, part, rounds * ROUND, 0, lambda _: False, shared=shared))
    return {
        "probes": mean.count,
        "seconds": spent,
        "seconds_per_probe": spent / mean.count,
        **_judged(mean, [exact[name].value for name in objective.names], objective.names, part),
    }


def _judged(mean: RunningMean, exact: list[float], names: tuple[str, ...], part: str) -> dict[str, Any]:
    """Compare with the exact traces: of the Hessian itself, or 0 for the remainder of a piecewise affine net."""
    stderr = mean.stderr.tolist()
    truth = exact if part == "hessian" else [0.0] * len(exact)
    scores = [(value - right) / error for value, right, error in zip(mean.mean.tolist(), truth, stderr, strict=True)]
    relative = {name: error / value for name, error, value in zip(names, stderr, exact, strict=True)}
    needed = {name: mean.count * (share / TARGET) ** 2 for name, share in relative.items()}
    return {
        "relative_stderr": relative,
        "median_relative_stderr": statistics.median(relative.values()),
        "worst_relative_stderr": max(relative.values()),
        "median_probes_for_target": math.ceil(statistics.median(needed.values())),
        "worst_probes_for_target": math.ceil(max(needed.values())),
        "largest_score": max(abs(score) for score in scores),
    }


def plain_probes(model: nn.Module, batches: Batches, arguments: argparse.Namespace) -> dict[str, Any]:
    """Textbook Hutchinson: the same random signs on all the data."""
    return _probed(model, batches, arguments.seconds, "hessian", shared=True)


def fresh_probes(model: nn.Module, batches: Batches, arguments: argparse.Namespace) -> dict[str, Any]:
    """Hutchinson with signs of its own for every piece of the data."""
    return _probed(model, batches, arguments.seconds, "hessian", shared=False)


def remainder_probes(model: nn.Module, batches: Batches, arguments: argparse.Namespace) -> dict[str, Any]:
    """Only H − G is probed, fresh signs: what a net would need whose graph did not show that it is affine."""
    return _probed(model, batches, arguments.seconds, "remainder", shared=False)


def per_probe(model: nn.Module, batches: Batches, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds and memory per probe on all the data, `--probes` of them, in all parameters as PyHessian has it."""
    objective = make_objective(model, batches)
    with peak_memory() as grown:
        run = lambda: probe_traces(objective, "hessian", arguments.probes, 0, lambda _: False)  # noqa: E731
        seconds = [timed(run)[0] / arguments.probes for _ in range(arguments.repeats)]
        return {"memory_mb": grown(), "seconds_per_probe": statistics.median(seconds)}


def pyhessian_per_probe(model: nn.Module, batches: Batches, arguments: argparse.Namespace) -> dict[str, Any]:
    """PyHessian on the same images: its loop over batches, and its faster way with one batch whose graph it keeps."""
    if arguments.pyhessian is None:
        return {"skipped": "no folder with the package pyhessian was given"}
    sys.path.insert(0, str(arguments.pyhessian))
    import numpy

    vars(numpy).setdefault("trapz", numpy.trapezoid)  # it predates numpy 2
    from pyhessian import hessian

    criterion = nn.CrossEntropyLoss()

    def loop() -> None:
        hessian(model, criterion, dataloader=batches, cuda=False).trace(maxIter=arguments.probes, tol=0.0)

    def one_batch() -> None:
        whole = tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
        hessian(model, criterion, data=whole, cuda=False).trace(maxIter=arguments.probes, tol=0.0)

    with peak_memory() as grown:
        looped = statistics.median(timed(loop)[0] / arguments.probes for _ in range(arguments.repeats))
        loop_memory = grown()
    with peak_memory() as grown:
        kept = statistics.median(timed(one_batch)[0] / arguments.probes for _ in range(arguments.repeats))
        kept_memory = grown()
    return {
        "seconds_per_probe": looped,
        "memory_mb": loop_memory,
        "seconds_per_probe_graph_kept": kept,
        "memory_mb_graph_kept": kept_memory,
    }


def layer_geometry(model: nn.Module, batches: Batches, arguments: argparse.Namespace) -> dict[str, Any]:
    """Norms of the real convolution operators and the kink density: the rest of a curvature map."""
    sites = {site.name for site in find_sites(model)}
    shapes: dict[str, tuple[int, ...]] = {}
    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: shapes.update({name: tuple(args[0].shape[1:])}))
        for name, module in model.named_modules()
        if name in sites
    ]
    observe(model, batches[0][0][:1])
    for handle in handles:
        handle.remove()
    norms, _ = timed(lambda: [spectral_norm(model.get_submodule(name), shape) for name, shape in shapes.items()])
    kinks, density = timed(lambda: kink_density(model, batches))
    return {"seconds_norms": norms, "seconds_kinks": kinks, "kink_density": density.overall.value}


PARTS: dict[str, Part] = {
    part.__name__: part
    for part in (
        training_step,
        exact_traces,
        plain_probes,
        fresh_probes,
        remainder_probes,
        per_probe,
        pyhessian_per_probe,
        layer_geometry,
    )
}


def run_part(arguments: argparse.Namespace) -> None:
    """Run one part in this process and print its answer as JSON."""
    torch.manual_seed(0)
    tensors = load_file(arguments.images_file)
    images = tensors["images"].contiguous(memory_format=torch.channels_last)
    batches = list(zip(images.split(BATCH), tensors["labels"].split(BATCH), strict=True))
    model = load_model(MODEL, arguments.weights).eval().to(memory_format=torch.channels_last)
    with torch.no_grad():
        model(batches[0][0][:8])
    print(json.dumps(PARTS[arguments.part](model, batches, arguments)))


def in_a_process(name: str, images: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one part in a fresh process."""
    command = [sys.executable, __file__, "--part", name, "--images-file", str(images)]
    for key in ("weights", "pyhessian", "threads", "seconds", "probes", "repeats"):
        if (value := getattr(arguments, key)) is not None:
            command += [f"--{key}", str(value)]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    if child.returncode:
        raise SystemExit(f"{name} failed:\n{child.stderr}")
    answer: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    print(name, json.dumps({key: value for key, value in answer.items() if not isinstance(value, dict)}), flush=True)
    return answer


def summary(parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Relate the parts to one training step and to PyHessian."""
    step, exact, probe, peer = (
        parts[name] for name in ("training_step", "exact_traces", "per_probe", "pyhessian_per_probe")
    )
    epoch = EPOCH / step["images_per_second"]
    map_seconds = exact["seconds"] + parts["layer_geometry"]["seconds_norms"] + parts["layer_geometry"]["seconds_kinks"]
    found = {
        "memory_exact_over_step": exact["memory_mb"] / step["memory_mb"],
        "memory_probe_over_step": probe["memory_mb"] / step["memory_mb"],
        "curvature_map_in_training_epochs": map_seconds / epoch,
        "curvature_map_share_of_100_epochs": map_seconds / (100 * epoch),
    }
    if "skipped" not in peer:
        found["speedup_per_probe"] = peer["seconds_per_probe"] / probe["seconds_per_probe"]
        found["speedup_per_probe_graph_kept"] = peer["seconds_per_probe_graph_kept"] / probe["seconds_per_probe"]
    return found


def main() -> None:
    made = parser(__doc__ or "", "geometry")
    made.add_argument("--weights", type=Path, required=True)
    made.add_argument("--images", type=int, default=512, help="training images")
    made.add_argument("--seconds", type=float, default=60.0, help="time for each way of probing")
    made.add_argument("--probes", type=int, default=16, help="probes for the time of one")
    made.add_argument("--repeats", type=int, default=3, help="runs whose median is a time")
    made.add_argument("--pyhessian", type=Path, default=None, help="folder that holds the package pyhessian")
    made.add_argument("--part", choices=sorted(PARTS), help="run this part only, in this process")
    made.add_argument("--images-file", type=Path, help=argparse.SUPPRESS)
    arguments = made.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.images_file is not None:
        run_part(arguments)
        return
    batches = load_data("cifar10", "train", normalize="imagenet", batch_size=BATCH, limit=arguments.images, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images.safetensors"
        pairs = list(batches)
        stacked = {
            "images": torch.cat([x.contiguous() for x, _ in pairs]).contiguous(),
            "labels": torch.cat([y for _, y in pairs]),
        }
        save_file(stacked, images)
        names = [arguments.part] if arguments.part else list(PARTS)
        parts = {name: in_a_process(name, images, arguments) for name in names}
    related = {} if arguments.part else summary(parts)
    print(json.dumps(related, indent=1))
    write_results(arguments, {"summary": related, "parts": parts})


if __name__ == "__main__":
    main()
