"""Where do the weights of a model lie on disk, and how is one looked at without the others?

The safetensors files of a folder are mapped, not read: a tensor costs memory from the moment it is asked for until
it is let go.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from geoquant.models.pretrained import weight_files


class Checkpoint(Mapping[str, Tensor]):
    """The tensors of safetensors files by name, each read anew whenever it is asked for; a context manager.

    Attributes:
        files: where they are from.

    Raises:
        FileFormatError: a shard is missing or truncated, or the weights are pickles.
    """

    def __init__(self, folder: Path | str, dtype: torch.dtype | None = torch.float32) -> None:
        self.files = weight_files(folder)
        self._dtype = dtype
        self._open: list[Any] = []
        self._places: dict[str, Any] = {}

    def __enter__(self) -> Checkpoint:
        for file in self.files:
            opened: Any = safe_open(file, framework="pt")
            self._open.append(opened.__enter__())
            self._places |= dict.fromkeys(self._open[-1].keys(), opened)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._places.clear()
        for opened in self._open:
            opened.__exit__(kind, error, trace)
        self._open.clear()

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._places[name].get_tensor(name)
        return tensor.to(self._dtype) if self._dtype is not None and tensor.is_floating_point() else tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without reading it."""
        return tuple(self._places[name].get_slice(name).get_shape())

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
