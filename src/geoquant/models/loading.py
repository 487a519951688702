"""Where does a model come from: a callable that builds it and a safetensors file for its weights, or a folder?

Nothing here executes code from a weights file: pickles are refused. Loading is strict, since a silently
missing tensor is a random one, and it checks everything before it writes the first weight.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from geoquant.errors import FileFormatError, GeoquantError, ModelError, WeightsError
from geoquant.importing import import_named
from geoquant.models.pretrained import is_pretrained_folder, load_pretrained

# Counters that only training reads: weights files leave them out, and they change no prediction.
TRAINING_COUNTERS = ("num_batches_tracked",)

_PICKLE_SUFFIXES = {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".th"}
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_SHOWN = 3


def load_model(spec: str, weights: Path | str | None = None, task: str | None = None) -> nn.Module:
    """Build the model that `spec` names and load its weights.

    Args:
        spec: a folder in the layout of the Hugging Face Hub (see `load_pretrained`), or ``package.module:callable`` or
            ``file.py:callable``, called without arguments; a module object of that name is taken as it is.
        weights: a safetensors file (see `load_weights_`); the callable's or the folder's own weights when None.
        task: what a folder's model is for.

    Raises:
        ModelError: the spec names nothing, or what it names gives no module.
        WeightsError, FileFormatError: the weights do not fit, or the file is not whole.

    >>> type(load_model("geoquant.models.zoo:mlp3_mnist")).__name__
    'MLP'
    """
    if is_pretrained_folder(spec):
        built = load_pretrained(spec, task)
    elif task is not None:
        raise ModelError(f"a task is there for Hugging Face folders, and '{spec}' is none (it has no config.json)")
    else:
        built = _built(import_named(spec, ModelError), spec)
    if weights is not None:
        load_weights_(built, weights)
    return built


def load_weights_(model: nn.Module, path: Path | str) -> None:
    """Copy the tensors of a safetensors file into `model`; every name and shape must fit.

    Batch norm's counters may be missing, and so may all but one name of a tied weight. Floating-point
    tensors are converted to the model's own dtype.

    Raises:
        WeightsError: tensors are missing, extra, misshapen, or disagree where the model ties them.
        FileFormatError: the file is missing, truncated, or a pickle. The model is unchanged in each case.
    """
    path = Path(path)
    _refuse_pickle(path)
    targets = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    with _opened(path) as file:
        names = list(file.keys())
        _check_names(path, targets, names)
        _check_shapes(path, targets, {name: tuple(file.get_slice(name).get_shape()) for name in names})
        loaded = {name: file.get_tensor(name) for name in names}
    _check_kinds(path, targets, loaded)
    _check_ties(path, targets, loaded)
    with torch.no_grad():
        for name, tensor in loaded.items():
            targets[name].copy_(tensor)


def model_fingerprint(model: nn.Module) -> str:
    """Return the SHA-256 over names, dtypes, shapes and bytes of the state dict, in hexadecimal.

    Names are sorted; memory layout and batch norm's counters do not enter.

    >>> layer = nn.Linear(1, 1)
    >>> before = model_fingerprint(layer)
    >>> with torch.no_grad():
    ...     _ = layer.bias.add_(1)
    >>> before == model_fingerprint(layer)
    False
    """
    return tensors_fingerprint(model.state_dict())


def tensors_fingerprint(tensors: Mapping[str, Any]) -> str:
    """Return the fingerprint of a model with these tensors, which are looked at one after the other."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        if not isinstance(tensor, Tensor) or name.rpartition(".")[2] in TRAINING_COUNTERS:
            continue
        total.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        total.update(plain.view(torch.uint8).numpy().data)
    return total.hexdigest()


def _built(found: Any, spec: str) -> nn.Module:
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise ModelError(f"'{spec}' is a {type(found).__name__}; expected a callable that builds a torch.nn.Module")
    try:
        model = found()
    except GeoquantError:
        raise
    except Exception as error:
        raise ModelError(f"'{spec}' raised {type(error).__name__}: {error}; it is called without arguments") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"'{spec}' gave a {type(model).__name__}; expected a torch.nn.Module")
    return model


def _refuse_pickle(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise FileFormatError(f"cannot read the weights {path}: {error.strerror}") from error
    if path.suffix.lower() in _PICKLE_SUFFIXES or start.startswith(_PICKLE_STARTS):
        raise FileFormatError(
            f"{path} is a pickle, which could execute code; convert it once, without executing any, with "
            f"safetensors.torch.save_file(torch.load({path.name!r}, weights_only=True), "
            f"'{path.stem}.safetensors')"
        )


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise FileFormatError(f"{path} is not a whole safetensors file ({error}); copy or download it again") from error


def _check_names(path: Path, targets: dict[str, Tensor], names: Sequence[str]) -> None:
    given = set(names)
    stored = {_memory(targets[name]) for name in given & set(targets)}
    missing = [
        name
        for name, tensor in targets.items()
        if name not in given and name.rpartition(".")[2] not in TRAINING_COUNTERS and _memory(tensor) not in stored
    ]
    extra = sorted(given - set(targets))
    faults = [
        f"{len(faulty)} {what} ({_few(faulty)})" for what, faulty in (("missing", missing), ("extra", extra)) if faulty
    ]
    if faults:
        raise WeightsError(f"{path} does not fit the model: {' and '.join(faults)}; nothing was loaded")


def _check_shapes(path: Path, targets: dict[str, Tensor], shapes: dict[str, tuple[int, ...]]) -> None:
    wrong = [
        f"{name} is {shape}, the model's is {tuple(targets[name].shape)}"
        for name, shape in shapes.items()
        if shape != tuple(targets[name].shape)
    ]
    if wrong:
        raise WeightsError(f"{path} has {len(wrong)} misshapen ({_few(wrong, '; ')}); nothing was loaded")


def _check_kinds(path: Path, targets: dict[str, Tensor], loaded: dict[str, Tensor]) -> None:
    wrong = [
        f"{name} is {tensor.dtype}, the model's is {targets[name].dtype}"
        for name, tensor in loaded.items()
        if tensor.dtype != targets[name].dtype
        and not (tensor.is_floating_point() and targets[name].is_floating_point())
    ]
    if wrong:
        raise WeightsError(f"{path} has {len(wrong)} of another kind ({_few(wrong, '; ')}); nothing was loaded")


def _check_ties(path: Path, targets: dict[str, Tensor], loaded: dict[str, Tensor]) -> None:
    """Refuse a file that holds two values for one weight: the last would win in silence."""
    first: dict[tuple[int, ...], str] = {}
    for name, tensor in loaded.items():
        other = first.setdefault(_memory(targets[name]), name)
        if other != name and not torch.equal(loaded[other], tensor):
            raise WeightsError(
                f"{path} holds different values for '{other}' and '{name}', which the model ties; nothing was loaded"
            )


def _memory(tensor: Tensor) -> tuple[int, ...]:
    """Identify a tensor by its memory; tensors without elements by themselves."""
    if tensor.numel() == 0:
        return (id(tensor),)
    return (tensor.untyped_storage()._cdata, tensor.storage_offset(), *tensor.shape)


def _few(items: Sequence[str], separator: str = ", ") -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return separator.join(items[:_SHOWN]) + more
