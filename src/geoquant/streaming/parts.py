"""How does a run that takes hours keep what it has, and become one file in the end?

Every finished part of a model is a safetensors file of its packed tensors, written atomically and marked with the
run it belongs to: another plan, rounding, seed or calibration set never mixes with it. When all are there the
artifact is written from them tensor by tensor, byte for byte as `geoquant.save` writes it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from geoquant.export import WEIGHTS_FILE
from geoquant.export.packed import checksum
from geoquant.models import Inventory
from geoquant.plan import Plan
from geoquant.plan.layout import description, entries, file_header, metadata
from geoquant.storage import atomic_path

_KEY = "geoquant-run"


class Parts:
    """The parts of one run in a folder.

    Args:
        folder: of the artifact; parts lie in ``parts/`` inside until it is whole.
        key: names the run.
    """

    def __init__(self, folder: Path | str, key: str) -> None:
        self._folder, self._key = Path(folder) / "parts", key

    def path(self, name: str) -> Path:
        """Return where a part lies."""
        return self._folder / f"{name}.safetensors"

    def has(self, name: str) -> bool:
        """Say whether a part of this very run is there and whole."""
        try:
            with safe_open(self.path(name), framework="pt") as file:
                return bool((file.metadata() or {}).get(_KEY) == self._key)
        except (SafetensorError, OSError):
            return False

    def write(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Write a part, atomically."""
        with atomic_path(self.path(name)) as temporary:
            save_file({key: each.contiguous() for key, each in tensors.items()}, temporary, {_KEY: self._key})

    def read(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of a part."""
        return dict(load_file(self.path(name)))

    def assemble(self, names: list[str], target: Path, plan: Plan, inventory: Inventory) -> Path:
        """Write the artifact from all parts, each tensor read when its turn comes; return its path."""
        file = target / WEIGHTS_FILE
        with _Joined([self.path(name) for name in names]) as tensors:
            described = description(inventory, plan.grids)
            text = metadata(described, checksum(described, tensors))
            ordered, header = file_header(entries(inventory, plan.grids), text)
            with atomic_path(file) as temporary, temporary.open("wb") as out:
                out.write(header)
                for entry in ordered:
                    out.write(tensors[entry.name].reshape(-1).view(torch.uint8).numpy().data)
        shutil.rmtree(self._folder, ignore_errors=True)
        return file


class _Joined(Mapping[str, Tensor]):
    """The tensors of several files, each read when it is asked for."""

    def __init__(self, files: list[Path]) -> None:
        self._files, self._stack = files, ExitStack()
        self._places: dict[str, Any] = {}

    def __enter__(self) -> _Joined:
        for path in self._files:
            opened = self._stack.enter_context(safe_open(path, framework="pt"))
            self._places |= dict.fromkeys(opened.keys(), opened)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._places[name].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
