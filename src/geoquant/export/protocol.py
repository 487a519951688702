"""How does a quantized model become a file that some engine loads? One protocol for every format.

An `Exporter` says beforehand what it will store for each weight, writes the quantized model, finds the same in the
file again, and loads it. A width or a layer that its engine does not take is widened and listed with a reason, or
refused with one sentence before anything is written. How fast an engine runs what it was given is not asked here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from torch import Tensor, nn

from geoquant.errors import ExportError, MissingExtraError, suggest
from geoquant.plan import Plan
from geoquant.registry import Registry


@dataclass(frozen=True)
class StoredLayer:
    """How one weight lies in a file.

    Attributes:
        name: of the weight in the model's state dict, or in the file where that goes by names of its own.
        grid: the plan's grid; empty where the file does not say.
        stored: the engine's name of its type, such as ``int4``, ``Q4_0`` or ``float32``.
        bytes: of codes, scales and zero points, without headers and names.
        reason: why it is stored otherwise than planned; empty where it is not.
    """

    name: str
    grid: str
    stored: str
    bytes: int
    reason: str = ""


@dataclass(frozen=True)
class Contents:
    """What a file, or a folder of files, holds.

    Attributes:
        format: name of the exporter that reads it.
        path: where it is.
        bytes: of all its files.
        layers: the quantized weights.
        others: bytes of all other tensors.
        notes: what else a person should know, one sentence each: planned bytes beside those here, activations that
            stayed in float, what was checked.
    """

    format: str
    path: Path
    bytes: int
    layers: tuple[StoredLayer, ...]
    others: int = 0
    notes: tuple[str, ...] = ()


class Exporter(Protocol):
    """A format that some engine reads.

    Laws (the contract suite holds every registered exporter to them): logits of the loaded file are those of the
    quantized model within `tolerance`; `layers` foretells what `contents` finds; a layer that is not supported is
    refused with an `ExportError` and leaves nothing on disk; loading executes no code from the file. Modules of
    exporters import their engines inside functions (`need`), so that geoquant imports without them.
    """

    @property
    def name(self) -> str:
        """The name it is registered under."""
        ...

    @property
    def suffix(self) -> str:
        """How the name of its file ends, such as ``.onnx``; empty where it writes a folder."""
        ...

    @property
    def options(self) -> Mapping[str, str]:
        """What else `write` and `layers` take, each with one line of help."""
        ...

    def tolerance(self, plan: Plan) -> float:
        """Largest difference of a logit from the quantized model's, as a share of the largest logit."""
        ...

    def layers(self, plan: Plan, **options: Any) -> tuple[StoredLayer, ...]:
        """Foretell how each weight of `plan` will be stored, in the order of its sites.

        Raises:
            ExportError: the engine does not take a layer, or an option makes no sense.
        """
        ...

    def write(self, model: nn.Module, plan: Plan, path: Path, **options: Any) -> Contents:
        """Write the quantized `model`, atomically; return what was written.

        Raises:
            PlanError: the model is not quantized by this plan, or was changed since.
            ExportError: the engine does not take a layer, or an option makes no sense.
            OutputError: it cannot be written; nothing is left half written.
            MissingExtraError: a package is needed that is not installed.
        """
        ...

    def recognizes(self, path: Path) -> bool:
        """Whether `path` looks like a file of this format; reads a few bytes at most, and never raises."""
        ...

    def contents(self, path: Path) -> Contents:
        """Read what `path` holds and verify it as far as the format allows.

        Raises:
            FileFormatError: it is truncated, was changed, or is no such file.
        """
        ...

    def load(self, path: Path, model: nn.Module) -> Callable[[Any], Tensor]:
        """Return a function from a batch (see `geoquant.models.predict`) to logits, computed with what `path` holds.

        Args:
            path: what `write` wrote.
            model: of the same architecture, not quantized; it is not changed. Formats that hold the graph do not
                look at it.
        """
        ...


EXPORTERS: Registry[Exporter] = Registry("exporter")


def export_model(model: nn.Module, plan: Plan, path: Path | str, format: str, **options: Any) -> Contents:
    """Write the quantized `model` in the registered `format`; return what was written.

    Raises:
        UnknownNameError: there is no such format.
        ExportError: the format has no such option, or its engine does not take a layer.
    """
    exporter = EXPORTERS[format]
    unknown = sorted(set(options) - set(exporter.options))
    if unknown:
        known = suggest(unknown[0], exporter.options) if exporter.options else " (it has none)"
        raise ExportError(f"the format {format} has no option '{unknown[0]}'{known}")
    return exporter.write(model, plan, Path(path), **options)


def recognize(path: Path | str) -> Exporter | None:
    """Return the registered exporter whose format `path` has, or None."""
    found = (EXPORTERS[name] for name in EXPORTERS)
    return next((each for each in found if each.recognizes(Path(path))), None)


def need(module: str, extra: str) -> ModuleType:
    """Import a package of an optional extra.

    >>> need("json", "onnx").__name__
    'json'
    >>> need("no_such_package", "onnx")
    Traceback (most recent call last):
    ...
    geoquant.errors.MissingExtraError: this needs the package no_such_package; install geoquant[onnx]
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"this needs the package {module.partition('.')[0]}; install geoquant[{extra}]"
        ) from error
