"""How is a run in few bits interrupted, and taken up again to the bit?

One safetensors file holds model, optimizer, the state of `AdaptivePrecision` and of torch's generator; what is no
tensor is JSON in its header. It is written atomically and read without executing code.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from geoquant.errors import FileFormatError
from geoquant.storage import atomic_path
from geoquant.training.adaptive import AdaptivePrecision

FORMAT = "geoquant-training-1"
_TENSOR = "tensor:"


def save_checkpoint(
    path: Path | str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    precision: AdaptivePrecision,
    more: dict[str, Any] | None = None,
) -> None:
    """Write everything that a run needs to go on.

    Args:
        path: of the file.
        model: as it is trained.
        optimizer: of the model's parameters.
        precision: of both.
        more: plain values of the caller's own.

    Raises:
        OutputError: the file cannot be written.
    """
    state = {
        "model": dict(model.state_dict()),
        "optimizer": optimizer.state_dict(),
        "precision": precision.state_dict(),
        "generator": torch.get_rng_state(),
        "more": more or {},
    }
    write_state(path, state)


def write_state(path: Path | str, state: dict[str, Any]) -> None:
    """Write nested plain values and tensors into one safetensors file.

    Raises:
        OutputError: the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    document = _without_tensors(state, "", tensors)
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {"format": FORMAT, "document": json.dumps(document, allow_nan=False)})


def load_checkpoint_(
    path: Path | str, model: nn.Module, optimizer: torch.optim.Optimizer, precision: AdaptivePrecision
) -> dict[str, Any]:
    """Put model, optimizer, precision and torch's generator where `save_checkpoint` found them; return `more`.

    Raises:
        FileFormatError: the file is missing, cut, or no such checkpoint.
        ModelError: it is another model's.
    """
    state = read_state(path)
    precision.load_state_dict(state["precision"])
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["generator"])
    more: dict[str, Any] = state["more"]
    return more


def read_more(path: Path | str) -> dict[str, Any]:
    """Return the caller's own values in a checkpoint, and change nothing.

    Raises:
        FileFormatError: as `load_checkpoint_`.
    """
    more: dict[str, Any] = read_state(path)["more"]
    return more


def read_state(path: Path | str) -> dict[str, Any]:
    """Return what `write_state` wrote.

    Raises:
        FileFormatError: the file is missing, cut, or no such file.
    """
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise FileFormatError(f"{path} is no checkpoint of a training run; it says {header.get('format')!r}")
            state: dict[str, Any] = _with_tensors(json.loads(header["document"]), file)
            return state
    except FileFormatError:
        raise
    except Exception as error:
        raise FileFormatError(f"cannot read the checkpoint {path}: {error}; delete it to start the run anew") from error


def _without_tensors(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """Return `value` with tensors moved to `tensors`, and dictionaries as lists of pairs: their keys may be numbers."""
    if isinstance(value, Tensor):
        tensors[place] = value.detach().cpu().contiguous().clone()
        return _TENSOR + place
    if isinstance(value, dict):
        pairs = enumerate(value.items())
        return {"pairs": [[key, _without_tensors(each, f"{place}/{n}", tensors)] for n, (key, each) in pairs]}
    if isinstance(value, (list, tuple)):
        return [_without_tensors(each, f"{place}/{n}", tensors) for n, each in enumerate(value)]
    return value


def _with_tensors(value: Any, file: Any) -> Any:
    if isinstance(value, str) and value.startswith(_TENSOR):
        return file.get_tensor(value.removeprefix(_TENSOR))
    if isinstance(value, dict):
        return dict(_pairs(value, file))
    return [_with_tensors(each, file) for each in value] if isinstance(value, list) else value


def _pairs(value: dict[str, Any], file: Any) -> Iterator[tuple[Any, Any]]:
    for key, each in value["pairs"]:
        yield key, _with_tensors(each, file)
