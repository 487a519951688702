"""A folder that `AutoModelForCausalLM.from_pretrained` and vLLM read: compressed-tensors, ``pack-quantized``.

Mixed widths are groups of exactly named modules in ``quantization_config``. The compressed-tensors library packs the
weights and, before the folder appears, unpacks them again: values must come back as the model has them, bit by bit.
Any model of linear layers can be stored; those that are not of transformers get a configuration without an
architecture, which only geoquant reads. What can be packed is said in `geoquant.export.pack_quantized`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from geoquant.errors import ExportError, FileFormatError, WeightsError
from geoquant.export.compressed_config import (
    METHOD,
    is_compressed,
    match_targets,
    module_of,
    quantization_config,
    read_targets,
)
from geoquant.export.hub_folder import copy_tokenizer, model_dtype, write_configuration
from geoquant.export.pack_quantized import Packing, dense_dtype, foretell, pack, packings_of, unpack
from geoquant.export.protocol import EXPORTERS, Contents, StoredLayer, export_model
from geoquant.export.shards import find_shards, opened, verify, write_shards
from geoquant.export.states import state_of
from geoquant.models import Site, get_weight, inference, other_tensors, predict
from geoquant.plan import Entry, Plan
from geoquant.quantize import QuantizedState
from geoquant.storage import Json, atomic_folder

SHARD_BYTES = 5_000_000_000
_PARTS = ("weight_packed", "weight_scale", "weight_zero_point")
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class CompressedTensors:
    """A Hugging Face folder with packed integers of 2 to 8 bits, mixed by module."""

    name = METHOD
    suffix = ""
    options: Mapping[str, str] = {
        "fused": "llama (default: q/k/v and gate/up must be packed alike, since vLLM joins them), a pattern, or none",
        "zero_points": "widen (default: they become one more bit, since transformers loads none) or keep, for vLLM",
        "tokenizer": "folder whose tokenizer files are copied; that of the model when it came from one",
        "shard_bytes": "largest size of one weight file; 5 GB",
    }

    def tolerance(self, plan: Plan) -> float:
        """Bit-identical."""
        return 0.0

    def layers(self, plan: Plan, **options: Any) -> tuple[StoredLayer, ...]:
        """Foretell codes, scales and zero points of every site."""
        _shard_bytes(options)
        return foretell(plan, options.get("fused", "llama"), options.get("zero_points", "widen"))

    def write(self, model: nn.Module, plan: Plan, path: Path, **options: Any) -> Contents:
        """Write configuration, weights and tokenizer files."""
        state = state_of(model, plan)
        layers = {layer.name: layer for layer in self.layers(plan, **options)}
        packings = packings_of(plan, options.get("zero_points", "widen"))
        configuration = quantization_config(packings)

        def describe(names: list[str]) -> Json:
            held = sorted(set(layers) & {name.removesuffix("_packed") for name in names})
            return {"version": 1, "layers": {name: [layers[name].grid, layers[name].reason] for name in held}}

        with atomic_folder(path) as folder:
            write_shards(folder, _tensors(model, packings, state), describe, _shard_bytes(options))
            write_configuration(folder, model, configuration)
            copy_tokenizer(folder, model, options.get("tokenizer"))
        return self.contents(path)

    def recognizes(self, path: Path) -> bool:
        """Whether the folder's configuration names the library."""
        return is_compressed(path)

    def contents(self, path: Path) -> Contents:
        """List packed and dense weights; verify the checksums of files that geoquant wrote."""
        entries: dict[str, Entry] = {}
        notes: dict[str, list[str]] = {}
        checked, shards = 0, find_shards(path)
        targets = read_targets(path)
        for shard in shards:
            with opened(shard) as stored:
                entries |= {name: stored.entry(name) for name in stored}
                note = verify(shard, stored)
            if note is not None:
                checked += 1
                notes |= note.get("layers", {})
        packings = match_targets(path, targets, _packed_modules(entries))
        layers = tuple(_found(path, entries, packings, notes))
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        others = sum(entry.bytes for entry in entries.values()) - sum(layer.bytes for layer in layers)
        said = f"the SHA-256 of {checked} of {len(shards)} weight files was checked and matches"
        if not checked:
            said = "the weight files carry no checksum of their tensors; their headers and lengths are whole"
        return Contents(self.name, path, size, layers, others, (said,))

    def load(self, path: Path, model: nn.Module) -> Callable[[Any], Tensor]:
        """Return the forward of a copy of `model` with the library's decoded weights."""
        self.contents(path)
        tensors: dict[str, Tensor] = {}
        for shard in find_shards(path):
            with opened(shard) as stored:
                tensors |= stored.items()
        for module, packed in match_targets(path, read_targets(path), _packed_modules(tensors)).items():
            names = {part: _join(module, part) for part in (*_PARTS, "weight_shape")}
            parts = {part: tensors.pop(name) for part, name in names.items() if name in tensors}
            tensors[_join(module, "weight")] = unpack(parts, packed, model_dtype(model))
        loaded = copy.deepcopy(model)
        fill_(path, loaded, tensors)

        def logits(batch: Any) -> Tensor:
            with inference(loaded):
                return predict(loaded, batch)

        return logits


def compressed_tensors(model: nn.Module, plan: Plan, folder: Path | str, **options: Any) -> Contents:
    """Write the quantized `model` into a new `folder` that `AutoModelForCausalLM.from_pretrained` and vLLM read.

    Args:
        model: quantized by `plan`.
        plan: its grids; layers that vLLM joins need one width (``fused=["llama"]`` when allocating).
        folder: does not exist yet, or is empty.
        options: those of `CompressedTensors.options`.

    Raises:
        ExportError: a layer cannot be packed exactly, or joined layers differ; it is named.
        PlanError: the model is not quantized by this plan, or was changed since.
        OutputError: the folder cannot be written; nothing is left half written.
    """
    return export_model(model, plan, folder, METHOD, **options)


def _tensors(
    model: nn.Module, packings: dict[Site, Packing | None], state: QuantizedState
) -> Iterator[tuple[str, Tensor]]:
    """Give the file's tensors one by one: parts of packed weights, dense weights, everything else."""
    dtype = model_dtype(model)
    for site, packed in packings.items():
        weight, matrix = get_weight(model, site), state.matrices[site.parameter]
        if packed is None:
            dense = weight.to(dense_dtype(state.plan, matrix.grid))
            _check_exact(site.name, matrix.grid.scale_dtype, dense.to(weight.dtype), weight)
            yield site.parameter, dense.clone()
            continue
        parts = pack(matrix, packed)
        _check_exact(site.name, matrix.grid.scale_dtype, unpack(parts, packed, dtype), weight)
        for part, tensor in parts.items():
            yield _join(module_of(site.parameter), part), tensor
    for name, tensor in other_tensors(model, tuple(packings)).items():
        yield name, tensor.detach().clone()


def _check_exact(name: str, scales: str, found: Tensor, weight: Tensor) -> None:
    if not torch.equal(found.to(weight), weight):
        raise ExportError(
            f"the weights of '{name}' would not come back as they are: its {scales} scales or values do not survive "
            f"in a model of {str(weight.dtype).removeprefix('torch.')}; use scales of that dtype, such as 'int4:bf16'"
        )


def _found(
    path: Path, entries: dict[str, Entry], packings: dict[str, Packing], notes: dict[str, list[str]]
) -> Iterator[StoredLayer]:
    for module, packed in packings.items():
        wanted = [
            _join(module, part) for part in (*_PARTS[:2], "weight_shape", *([] if packed.symmetric else _PARTS[2:]))
        ]
        missing = [name for name in wanted if name not in entries]
        if missing:
            raise FileFormatError(f"{path} lacks the tensor '{missing[0]}'; copy or write it again")
        size = sum(entries[_join(module, part)].bytes for part in _PARTS if _join(module, part) in entries)
        grid, reason = notes.pop(_join(module, "weight"), ("", ""))
        yield StoredLayer(_join(module, "weight"), grid, packed.label, size, reason)
    for name, (grid, reason) in notes.items():
        if name not in entries:
            raise FileFormatError(f"{path} lacks the tensor '{name}'; copy or write it again")
        yield StoredLayer(
            name, grid, _DTYPES.get(entries[name].dtype, entries[name].dtype), entries[name].bytes, reason
        )


def _packed_modules(names: Mapping[str, Any]) -> list[str]:
    return [module_of(name) for name in names if name.rpartition(".")[2] == _PARTS[0]]


def _join(module: str, part: str) -> str:
    return f"{module}.{part}" if module else part


def _shard_bytes(options: Mapping[str, Any]) -> int:
    given = options.get("shard_bytes", SHARD_BYTES)
    if not str(given).isdecimal() or int(given) < 1:
        raise ExportError(f"shard_bytes={given} is no number of bytes; write one such as {SHARD_BYTES}")
    return int(given)


def fill_(path: Path, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy `tensors` into `model`, all of them or none; tied names follow."""
    targets: dict[str, Tensor] = dict(model.state_dict())
    held = {tensor.data_ptr() for name, tensor in targets.items() if name in tensors}
    missing = [name for name, tensor in targets.items() if name not in tensors and tensor.data_ptr() not in held]
    wrong = [name for name, tensor in tensors.items() if name not in targets or targets[name].shape != tensor.shape]
    if missing or wrong:
        raise WeightsError(
            f"{path} does not fit the model: tensor '{(missing + wrong)[0]}' is missing, unknown or of another shape "
            f"({len(missing) + len(wrong)} such); load it into the architecture it was made from"
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            targets[name].copy_(tensor)


EXPORTERS.register(METHOD, CompressedTensors())
