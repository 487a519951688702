"""How does an interrupted run go on as if nothing had happened, to the bit?

One safetensors file holds everything that the next step depends on: latent weights, steps, norms and their statistics,
what is known of oscillations, the optimizer's state, the best state seen, torch's random generator; and, as JSON in its
header, where the run is and what it was asked. Batches need no state: they are a function of seed, epoch and place. The
file is replaced in one rename, so an interruption while it is written leaves the one before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from geoquant.errors import FileFormatError, OutputError
from geoquant.recovery.settings import RecoveryError
from geoquant.recovery.sharding import assign_, whole
from geoquant.storage import Json, atomic_path, canonical

CHECKPOINT_FILE = "recovery.safetensors"
_VERSION = 1
_KEY = "geoquant-recovery"
_RNG = "random/torch"
_CUDA_RNG = "random/cuda"


def write_checkpoint(path: Path, document: Json, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors and a JSON document into one file, atomically.

    Raises:
        OutputError: the folder cannot be written or the disk is full; an older file is still there then.
    """
    owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        try:
            save_file(owned, temporary, {_KEY: canonical({"version": _VERSION, **document})})
        except (SafetensorError, OSError) as error:
            raise OutputError(f"cannot write {path}: {error}; nothing was written, choose another place") from error


def read_checkpoint(path: Path) -> tuple[Json, dict[str, Tensor]]:
    """Read what `write_checkpoint` wrote.

    Raises:
        FileFormatError: the file is missing, not whole, of another kind, or newer.
    """
    try:
        with safe_open(path, "pt") as file:
            document = json.loads((file.metadata() or {}).get(_KEY, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise FileFormatError(f"{path} is not a whole checkpoint ({error}); start without resume") from error
    if not isinstance(document, dict):
        raise FileFormatError(f"{path} is no checkpoint of a recovery; start without resume")
    if document["version"] > _VERSION:
        raise FileFormatError(f"{path} has version {document['version']}, this geoquant reads up to {_VERSION}")
    return document, tensors


def check_same_run(path: Path, found: Json, wanted: Json) -> None:
    """Refuse to go on with another run's state.

    >>> check_same_run(Path("a"), {"rate": 1}, {"rate": 2})
    Traceback (most recent call last):
    ...
    geoquant.recovery.settings.RecoveryError: the checkpoint a is of another run: rate was 1 and is 2; ...
    """
    for name, value in wanted.items():
        if found.get(name) != value:
            raise RecoveryError(
                f"the checkpoint {path} is of another run: {name} was {found.get(name)} and is {value}; "
                "resume with the same settings and data, or start without resume"
            )


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return everything that the state dict holds, in one piece each."""
    return {f"model/{name}": whole(tensor) for name, tensor in model.state_dict().items()}


def load_model_tensors_(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Write back what `model_tensors` returned; the memory format of each tensor stays."""
    for name, target in model.state_dict().items():
        assign_(target, tensors[f"model/{name}"])
    for module in model.modules():
        loaded = getattr(module, "loaded_", None)
        if loaded is not None:
            loaded()


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the state of every parameter, named by its place in the groups."""
    found = {}
    for place, parameter in enumerate(_parameters(optimizer)):
        for name, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                found[f"optimizer/{place}/{name}"] = whole(value)
    return found


def load_optimizer_tensors_(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Write back what `optimizer_tensors` returned."""
    parameters = _parameters(optimizer)
    for key, value in tensors.items():
        kind, *rest = key.split("/")
        if kind != "optimizer":
            continue
        parameter = parameters[int(rest[0])]
        if value.shape == parameter.shape:
            state = torch.empty_like(parameter, requires_grad=False)
            assign_(state, value)
        else:  # counters
            state = value.clone()
        optimizer.state[parameter][rest[1]] = state


def _parameters(optimizer: torch.optim.Optimizer) -> list[Any]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def random_tensors() -> dict[str, Tensor]:
    """Return the states of torch's random generators."""
    found = {_RNG: torch.get_rng_state()}
    if torch.cuda.is_available():
        found[_CUDA_RNG] = torch.cuda.get_rng_state()
    return found


def load_random_tensors_(tensors: Mapping[str, Tensor]) -> None:
    """Set torch's random generators."""
    torch.set_rng_state(tensors[_RNG])
    if _CUDA_RNG in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors[_CUDA_RNG])
