r"""Condition number and size tables of a ResNet-18 and a 6-layer Transformer, and the time of every step.

    python benchmarks/architectures.py
    python benchmarks/architectures.py --trained --weights cifar10_resnet20.safetensors --checkpoint stories260K \
        --text tinystories/v2_train_head.txt

Random weights: enough for sizes and speed, and for nothing that is said about trained nets. The source's
two demos (docs/sources.md, "Curvature-Guided Transformer Quantization") print the same tables. With --trained the
tables are of trained nets, by stage of a CIFAR-10 ResNet-20 and by kind of projection of a Llama: traces of the loss,
norm and condition number of the weights, and the curvature of the blocks at inputs that they see. The options default
to these names in $GEOQUANT_WEIGHTS_DIR and $GEOQUANT_DATA_DIR; calibration data is from the training splits.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common import RESULTS, parser, write_results
from geoquant.data import load_images
from geoquant.geometry import Estimate, SiteGeometry, curvature_sampled, measure_geometry, smoothed
from geoquant.geometry import condition_number as condition
from geoquant.models import find_sites, get_weight, inference, load_weights_
from geoquant.models.zoo import resnet18_imagenet, resnet20_cifar10, transformer6
from geoquant.plan import Budget, Plan, allocate, uniform_plan
from geoquant.quantize import quantize
from geoquant.sensitivity import profile

COMPONENT = re.compile(r"(?:^|\.)(q|k|v|o|out|up|down|fc|conv\d|downsample\.0|head|embedding)$")


def component(name: str) -> str:
    """Return which kind of layer a site is, for the table by component."""
    found = COMPONENT.search(name)
    return found.group(1) if found else name


def measure(model: nn.Module, example: torch.Tensor) -> dict[str, object]:
    """Profile by condition number, plan at an average of 6 bits, quantize; time every step."""
    seconds = {}

    def timed(name: str, start: float) -> float:
        now = time.perf_counter()
        seconds[name] = round(now - start, 3)
        return now

    now = time.perf_counter()
    with inference(model):
        for _ in range(4):
            model(example)
    now = timed("calibration (4 batches)", now)
    kappa = {site.name: float(condition(site.matrix(get_weight(model, site))).value) for site in find_sites(model)}
    now = timed("condition numbers", now)
    grids = [f"int{bits}" for bits in range(2, 9)]
    measured = profile(model, [example], grids=grids, predictors=["condition_number", "weight_error"])
    now = timed("rounding errors on 7 grids", now)
    plans: dict[str, Plan] = {
        "condition number + proportional": allocate(
            measured, Budget(average_bits=6), predictor="condition_number", solver="proportional"
        ),
        "weight error + exact": allocate(measured, Budget(average_bits=6), predictor="weight_error"),
    }
    now = timed("allocation (two plans)", now)
    quantize(model, plans["weight error + exact"])
    timed("quantization", now)
    plans["uniform int6"] = uniform_plan(measured.inventory, "int6")
    plans["float"] = uniform_plan(measured.inventory, "fp32")
    return {
        "layers": [
            {
                "layer": name,
                "condition_number": round(value, 2),
                **{key: plan.grid(name).bits for key, plan in plans.items()},
            }
            for name, value in kappa.items()
        ],
        "components": summarise(kappa, plans),
        "bytes": {name: plan.bytes for name, plan in plans.items()},
        "average_bits": {name: round(plan.average_bits, 4) for name, plan in plans.items()},
        "seconds": seconds,
    }


def summarise(kappa: dict[str, float], plans: dict[str, Plan]) -> list[dict[str, object]]:
    """Average condition number and bits by kind of layer."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in kappa:
        groups[component(name)].append(name)
    return [
        {
            "component": kind,
            "layers": len(names),
            "condition_number": round(statistics.median(kappa[name] for name in names), 2),
            **{key: round(statistics.mean(plan.grid(name).bits for name in names), 2) for key, plan in plans.items()},
        }
        for kind, names in groups.items()
    ]


def number(value: float) -> float | None:
    """Round to four digits; JSON has no infinity."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def of(estimate: Estimate | None) -> dict[str, Any] | None:
    """Return a value with its evidence."""
    if estimate is None:
        return None
    found: dict[str, Any] = {"value": number(estimate.value), "method": estimate.method}
    evidence = {"stderr": estimate.stderr, "residual": estimate.residual, "samples": estimate.samples}
    found |= {name: number(value) for name, value in evidence.items() if value}
    return found | ({"note": estimate.note} if estimate.note else {})


def trained(model: nn.Module, batches: list[Any], part: Callable[[str], str], seed: int) -> dict[str, Any]:
    """Measure a trained net; rows by layer, and by the part of the net that `part` says a layer belongs to."""
    geometry = measure_geometry(model, batches, find_sites(model), seed=seed)
    groups: dict[str, list[SiteGeometry]] = defaultdict(list)
    for site in geometry.sites:
        groups[part(site.site)].append(site)
    layers = [
        {
            "layer": site.site,
            "part": part(site.site),
            "weights": site.weights,
            "gauss_newton_trace": of(site.gauss_newton_trace),
            "hessian_trace": of(site.hessian_trace),
            "trace_per_weight": of(site.trace_per_weight),
            "spectral_norm": of(site.spectral_norm),
            "condition_number": of(site.condition_number),
        }
        for site in geometry.sites
    ]
    kinks = geometry.kinks
    return {
        "loss": geometry.loss,
        "samples": geometry.samples,
        "layers": layers,
        "parts": [row(name, sites) for name, sites in groups.items()],
        "top_eigenvalues": [of(each) for each in geometry.spectrum.top] if geometry.spectrum else [],
        "network_curvature": of(geometry.curvature),
        "smoothed_curvature": of(geometry.smoothed_curvature),
        "kink_density": of(kinks.overall) if kinks else None,
        "kink_density_by_layer": {name: of(each) for name, each in kinks.layers.items()} if kinks else {},
        "not_measured": [f"{each.measure} {each.site}: {each.reason}" for each in geometry.missing],
        "cost": number(geometry.cost),
        "seconds": round(geometry.seconds, 1),
    }


def row(name: str, sites: list[SiteGeometry]) -> dict[str, Any]:
    """Sum traces over a part of the net; norms and condition numbers by their median."""
    weights = sum(site.weights for site in sites)
    traces = [site.gauss_newton_trace for site in sites if site.gauss_newton_trace is not None]
    trace = sum(each.value for each in traces)
    medians = {
        key: number(statistics.median(each.value for site in sites if (each := getattr(site, key)) is not None))
        for key in ("spectral_norm", "condition_number")
    }
    return {
        "part": name,
        "layers": len(sites),
        "weights": weights,
        "trace": number(trace),
        "trace_stderr_at_most": number(sum(each.stderr for each in traces)),
        "trace_per_weight": number(trace / weights),
        **medians,
    }


def block_curvature(model: nn.Module, batch: Any, names: list[str], beta: float | None, points: int) -> dict[str, Any]:
    """Return κ of each block at the first inputs that it sees, sampled; kinks become softplus of sharpness `beta`."""
    seen: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    handles = []
    for name in names:

        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name) -> None:
            seen.setdefault(name, (args, kwargs))

        handles.append(model.get_submodule(name).register_forward_pre_hook(keep, with_kwargs=True))
    with torch.no_grad():
        model(**batch) if isinstance(batch, dict) else model(batch[0])
    for handle in handles:
        handle.remove()
    found = {}
    for name in names:
        args, kwargs = seen[name]
        block = _Block(model.get_submodule(name), args, kwargs)
        if beta is None:
            found[name] = of(curvature_sampled(block, block.x[:points], starts=1))
        else:
            with smoothed(beta):
                found[name] = of(curvature_sampled(block, block.x[:points], starts=1))
    return found


class _Block(nn.Module):
    """A block as a map of its hidden states alone."""

    def __init__(self, inner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.inner, self.named = inner, not args
        self.x: Tensor = args[0] if args else kwargs["hidden_states"]
        self.rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}

    def forward(self, x: Tensor) -> Tensor:
        result = self.inner(hidden_states=x, **self.rest) if self.named else self.inner(x, **self.rest)
        return result[0] if isinstance(result, tuple) else result


def trained_resnet20(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure the pretrained ResNet-20 by stage."""
    model = resnet20_cifar10().eval()
    load_weights_(model, arguments.weights)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = load_images("cifar10", "train")
    batches = list(images.batches(min(128, arguments.images), limit=arguments.images, normalize="imagenet"))
    result = trained(model, batches, lambda name: name.partition(".")[0], arguments.seed)
    stages = ["layer1", "layer2", "layer3"]
    result["smoothed_curvature_of_stages"] = block_curvature(model, batches[0], stages, 10.0, arguments.points)
    return result


def trained_llama(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure a Llama checkpoint by kind of projection, and the curvature of its attention and feed-forward blocks."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(arguments.checkpoint).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.checkpoint)
    stories = arguments.text.read_text(encoding="utf-8").split("<|endoftext|>")
    tokens: list[list[int]] = []
    for story in stories:
        coded = tokenizer(story.strip())["input_ids"][: arguments.tokens]
        tokens += [coded] if len(coded) == arguments.tokens else []
        if len(tokens) == arguments.stories:
            break
    rows = torch.tensor(tokens)
    batches = [{"input_ids": each, "labels": each} for each in rows.split(8)]
    result = trained(model, batches, lambda name: name.rpartition(".")[2], arguments.seed)
    few = {"input_ids": rows[: arguments.points, :16]}
    blocks = [f"model.layers.{i}.{kind}" for i in range(len(model.model.layers)) for kind in ("self_attn", "mlp")]
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        result["curvature_of_blocks"] = block_curvature(model, few, blocks, None, arguments.points)
    return result


def place(variable: str, *parts: str) -> Path | None:
    """Return where a file usually lies, or None."""
    return Path(os.environ[variable], *parts) if variable in os.environ else None


def main() -> None:
    made = parser(__doc__ or "", "architectures")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--trained", action="store_true", help="tables of trained nets instead")
    made.add_argument("--weights", type=Path, default=place("GEOQUANT_WEIGHTS_DIR", "cifar10_resnet20.safetensors"))
    made.add_argument("--checkpoint", type=Path, default=place("GEOQUANT_WEIGHTS_DIR", "stories260K"))
    made.add_argument("--text", type=Path, default=place("GEOQUANT_DATA_DIR", "tinystories", "v2_train_head.txt"))
    made.add_argument("--images", type=int, default=512, help="calibration images for the ResNet-20")
    made.add_argument("--stories", type=int, default=32, help="calibration stories for the Llama")
    made.add_argument("--tokens", type=int, default=128, help="of each story")
    made.add_argument("--points", type=int, default=4, help="inputs at which curvature is sampled")
    arguments = made.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    if arguments.trained:
        if arguments.output == RESULTS / "architectures.json":
            arguments.output = RESULTS / "architectures_trained.json"
        tables = {"resnet20_cifar10": trained_resnet20(arguments), "llama": trained_llama(arguments)}
        for name, table in tables.items():
            print(name, table["samples"], "samples", table["seconds"], "s", *table["not_measured"], sep="; ")
            for line in table["parts"]:
                print("  ", line)
        write_results(arguments, tables)
        return
    results = {
        "resnet18_imagenet": measure(resnet18_imagenet(), torch.randn(2, 3, 224, 224)),
        "transformer6": measure(transformer6(), torch.randint(0, 256, (4, 64))),
    }
    for name, result in results.items():
        print(name, result["bytes"], result["seconds"])
        for row in result["components"]:
            print("  ", row)
    write_results(arguments, results)


if __name__ == "__main__":
    main()
