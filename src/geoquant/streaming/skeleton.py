"""What is a model without its weights, and how does a part of it come to life for a while?

A skeleton is the transformers model of a folder whose parameters have shapes but no memory. It is cut at its blocks:
the largest list of modules of one class. What lies outside (embeddings, last norm, head) is held all the time, blocks
one at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from geoquant.errors import MissingExtraError, ModelError, WeightsError
from geoquant.models import Inventory, Site, TensorRecord, find_sites, other_tensors
from geoquant.models.loading import tensors_fingerprint
from geoquant.models.pretrained import auto_class, choose_task, read_config
from geoquant.streaming.checkpoint import Checkpoint


@dataclass(frozen=True, eq=False)
class Skeleton:
    """A model whose parameters wait on disk.

    Attributes:
        model: parameters on the meta device, buffers real.
        list_name: where its blocks are, such as ``model.layers``.
        sites: all quantizable weights.
        names: every name in the state dict → the name under which the files hold it (tied ones share one).
    """

    model: nn.Module
    list_name: str
    sites: tuple[Site, ...]
    names: dict[str, str]

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks in order."""
        return list(self.model.get_submodule(self.list_name).children())

    def block_name(self, index: int) -> str:
        """Return the full name of a block."""
        return f"{self.list_name}.{index}"

    def is_inside(self, name: str, index: int | None = None) -> bool:
        """Say whether a parameter belongs to block `index` (to any block when None)."""
        prefix = f"{self.list_name}." if index is None else f"{self.block_name(index)}."
        return name.startswith(prefix)

    def inventory(self, weights: Mapping[str, Tensor]) -> Inventory:
        """Return what `take_inventory` would say of the whole model in float32."""
        others = tuple(
            TensorRecord(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
            for name, tensor in other_tensors(self.model, self.sites).items()
        )
        return Inventory(self.sites, others, tensors_fingerprint(_Renamed(self.names, weights)))


class _Renamed(Mapping[str, Tensor]):
    """The tensors of a checkpoint under the names of the model."""

    def __init__(self, names: Mapping[str, str], weights: Mapping[str, Tensor]) -> None:
        self._names, self._weights = names, weights

    def __getitem__(self, name: str) -> Tensor:
        return self._weights[self._names[name]]

    def __iter__(self) -> Any:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def make_skeleton(folder: Path | str, weights: Checkpoint, task: str | None = None) -> Skeleton:
    """Build the model of a folder without its weights.

    Raises:
        ModelError: transformers does not know the model, or it has no list of blocks.
        WeightsError: the files lack a weight or hold it in another shape.
        MissingExtraError: transformers or accelerate are not installed.
    """
    try:
        from accelerate import init_empty_weights
    except ImportError as error:
        raise MissingExtraError("streaming weights needs accelerate: pip install geoquant[hf]") from error
    config = read_config(folder)
    config.use_cache = False
    with init_empty_weights(include_buffers=False):
        model = auto_class(choose_task(config, folder, task)).from_config(config, dtype=torch.float32)
    model.tie_weights()
    model.eval()
    names = _stored_names(model, weights, folder)
    return Skeleton(model, _list_of_blocks(model), find_sites(model), names)


def _list_of_blocks(model: nn.Module) -> str:
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len({type(child) for child in module}) == 1
    ]
    if not lists:
        raise ModelError(f"{type(model).__name__} has no list of equal blocks to walk through; quantize it whole")
    name, _ = max(lists, key=lambda pair: sum(each.numel() for each in pair[1].parameters()))
    return str(name)


def _stored_names(model: nn.Module, weights: Checkpoint, folder: Path | str) -> dict[str, str]:
    groups: dict[int, list[str]] = {}
    tensors = model.state_dict(keep_vars=True)
    for name, tensor in tensors.items():
        groups.setdefault(id(tensor), []).append(name)
    names: dict[str, str] = {}
    missing = []
    for group in groups.values():
        found = next((name for name in group if name in weights), None)
        if found is None:
            missing.append(group[0])
        else:
            names |= dict.fromkeys(group, found)
    if missing:
        raise WeightsError(
            f"{folder} lacks {len(missing)} weights of its {type(model).__name__} ({missing[0]}); save the model once "
            "more with save_pretrained, or quantize it without streaming"
        )
    for name, stored in names.items():
        shape = tuple(weights.shape(stored))
        if shape != tuple(tensors[name].shape):
            raise WeightsError(f"{folder}: '{stored}' is {shape}, the model's is {tuple(tensors[name].shape)}")
    return names


def fill_(model: nn.Module, names: Iterable[str], tensors: Mapping[str, Tensor], stored: Mapping[str, str]) -> None:
    """Give the tensors called `names` in `model` their values; tied ones stay one.

    Args:
        model: whose parameters or buffers are replaced.
        names: in the state dict.
        tensors: values by the names of the files.
        stored: name in the state dict → name in the files.
    """
    made: dict[str, nn.Parameter] = {}
    for name in names:
        path, _, last = name.rpartition(".")
        owner = model.get_submodule(path)
        source = stored[name]
        if last in owner._parameters:
            if source not in made:
                made[source] = nn.Parameter(tensors[source], requires_grad=False)
            owner._parameters[last] = made[source]
        else:
            owner._buffers[last] = tensors[source]


def empty_(module: nn.Module) -> None:
    """Let go of the memory of all parameters of `module`."""
    for each in module.modules():
        for name, parameter in each._parameters.items():
            if parameter is not None:
                each._parameters[name] = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
