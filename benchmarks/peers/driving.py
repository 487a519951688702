"""What every driver shares: the same net, the same images, and one form of answer.

A driver runs inside its peer's own environment, so nothing here needs geoquant or its dependencies: the file that
defines the net is executed with a stand-in for the catalogue that it registers itself in. Storage is counted in one
way for everyone: codes at their width, packed to whole bytes per layer, and 16 bits for each scale and zero point.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
import time
import types
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

SCALE_BITS = 16
FLOAT_BITS = 32
Shapes = Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class LayerFormat:
    """How one weight matrix is stored.

    Attributes:
        bits: width of a code; 16 or 32 is a layer left in float, which has no scale; 1.6 for ternary codes, of which
            five share a byte.
        group: weights that share a scale; None for a whole output channel.
        offsets: numbers of 16 bits stored beside each scale (zero point or shift).
    """

    bits: float
    group: int | None = None
    offsets: int = 0


def stored_bits(shape: tuple[int, int], layer: LayerFormat) -> int:
    """Return what a (channels, fan_in) matrix takes.

    >>> stored_bits((4, 8), LayerFormat(4))   # 32 codes of 4 bits and four scales
    192
    >>> stored_bits((4, 8), LayerFormat(3, group=4, offsets=1))
    352
    >>> stored_bits((4, 10), LayerFormat(1.6))   # 40 ternary codes in 8 bytes
    128
    """
    channels, fan_in = shape
    if layer.bits >= 16:
        return channels * fan_in * int(layer.bits)
    codes = 8 * math.ceil(channels * fan_in * Fraction(str(layer.bits)) / 8)
    scales = channels * math.ceil(fan_in / (layer.group or fan_in))
    return codes + SCALE_BITS * (1 + layer.offsets) * scales


def average_bits(shapes: Shapes, layers: Mapping[str, LayerFormat]) -> float:
    """Return stored bits of all layers over the number of their weights; a layer not named counts as float32."""
    total = sum(stored_bits(shape, layers.get(name, LayerFormat(FLOAT_BITS))) for name, shape in shapes.items())
    return total / sum(channels * fan_in for channels, fan_in in shapes.values())


def closest_within(budget: float, solve: Callable[[float], float], low: float, high: float, steps: int = 24) -> float:
    """Return the constraint whose delivered bits are closest to `budget` from below, by bisection.

    `solve` maps the peer's own constraint to delivered average bits and should not fall; `low` must fit.

    >>> round(closest_within(3.0, lambda constraint: constraint + 0.25, 1.0, 8.0), 3)
    2.75
    """
    best, delivered = None, -math.inf
    lower, upper = low, high
    for _ in range(steps):
        middle = (lower + upper) / 2
        found = solve(middle)
        if found <= budget:
            lower = middle
            if found >= delivered:
                best, delivered = middle, found
        else:
            upper = middle
    if best is None:
        raise ValueError(f"no constraint between {low:g} and {high:g} delivers {budget:g} average bits or less")
    return best


def build(net_file: Path, name: str) -> Any:
    """Build the net that `name` in `net_file` returns, without importing the package around it."""
    if "geoquant.models.zoo" in sys.modules:  # where geoquant itself runs, the net is at hand
        return getattr(sys.modules["geoquant.models.zoo"], name)()

    class Catalogue:
        def add(self, _: str) -> Callable[[Any], Any]:
            return lambda builder: builder

    for package in ("geoquant", "geoquant.models", "geoquant.models.zoo"):
        sys.modules.setdefault(package, types.ModuleType(package))
    catalogue: Any = types.ModuleType("geoquant.models.zoo.catalogue")
    catalogue.ZOO = Catalogue()
    sys.modules.setdefault(catalogue.__name__, catalogue)
    spec = importlib.util.spec_from_file_location("net", net_file)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"{net_file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules["net"] = module  # tracers look the source of a class up by its module
    spec.loader.exec_module(module)
    return getattr(module, name)()


class Task:
    """What all jobs share: budget, seed, options, a clock, and one form of answer."""

    shapes: Shapes

    def __init__(self, description: dict[str, Any], folder: Path) -> None:
        import torch

        torch.set_num_threads(int(description["threads"]))
        torch.manual_seed(int(description["seed"]))
        self.budget: float = description["budget"]
        self.seed: int = description["seed"]
        self.options: dict[str, Any] = description["options"]
        self.folder = folder
        self._start = self._seconds = 0.0

    @classmethod
    def drive(cls, action: Callable[[Self], None]) -> None:
        """Read the job that the command line names and carry it out."""
        made = argparse.ArgumentParser()
        made.add_argument("job", type=Path, help="job.json in the folder that the answer goes to")
        path: Path = made.parse_args().job
        action(cls(json.loads(path.read_text()), path.parent))

    def started(self) -> None:
        """Start the clock: what comes before is import and reading."""
        self._start = time.perf_counter()

    def stopped(self) -> None:
        """Stop the clock: what comes after is evaluation."""
        self._seconds = time.perf_counter() - self._start

    def write(self, layers: Mapping[str, LayerFormat], notes: Mapping[str, Any], **found: Any) -> None:
        """Write the formats, what was found with them, and the time it took."""
        report = {
            "layers": {name: asdict(layer) for name, layer in layers.items()},
            "average_bits": average_bits(self.shapes, layers),
            **found,
            "seconds": self._seconds,
            "notes": notes,
        }
        temporary = self.folder / "answer.json.part"
        temporary.write_text(json.dumps(report))
        temporary.replace(self.folder / "answer.json")


class Job(Task):
    """One cell: the net, the images and the budget that a driver was given, and where its answer goes."""

    def __init__(self, description: dict[str, Any], folder: Path) -> None:
        from safetensors.torch import load_file

        super().__init__(description, folder)
        self.model = build(Path(description["net_file"]), description["net"])
        self.model.load_state_dict(load_file(description["weights"]), strict=False)
        self.model.eval()
        self.shapes: Shapes = {  # (channels, fan_in) of each weight of the float net
            name: (module.weight.shape[0], module.weight[0].numel()) for name, module in self.layers.items()
        }
        self.calibration: Any = load_file(description["calibration"])["images"]
        self._test = description["test"]

    @property
    def layers(self) -> dict[str, Any]:
        """The convolutions and linear layers of the net, by name."""
        import torch

        kinds = (torch.nn.Conv2d, torch.nn.Linear)
        return {name: module for name, module in self.model.named_modules() if isinstance(module, kinds)}

    def batches(self, size: int = 64) -> list[Any]:
        """Return the calibration images in batches."""
        return list(self.calibration.split(size))

    def answer(self, model: Any, layers: Mapping[str, LayerFormat], **notes: Any) -> None:
        """Evaluate the quantized net on the test images and write logits and formats."""
        import torch
        from safetensors.torch import load_file, save_file

        images = load_file(self._test)["images"]
        with torch.no_grad():
            logits = torch.cat([model(batch).float() for batch in images.split(250)])
        save_file({"logits": logits.contiguous()}, str(self.folder / "logits.safetensors"))
        self.write(layers, notes)
