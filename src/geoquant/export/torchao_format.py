"""Models whose weights are torchao's tensors, and the configuration that torchao's ``quantize_`` takes.

torchao holds integers of any width in a byte each, with a scale and a zero point per row or group: on the CPU it is a
backend and a peer, not a way to store less. Codes and scales of the plan are put into its tensors as they are, so
logits are those of the quantized model; the configuration instead lets torchao fit scales of its own, which agree
with grids of max-abs scales and with no others. The folder is what transformers reads.
"""

from __future__ import annotations

import copy
import json
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from geoquant.errors import ExportError, FileFormatError, WeightsError
from geoquant.export.compressed_config import module_of
from geoquant.export.hub_folder import CONFIG_FILE, copy_tokenizer, model_dtype, write_configuration
from geoquant.export.pack_quantized import Packing, dense_dtype, dense_layer, packings_of, stored_scale
from geoquant.export.packed import WEIGHTS_FILE
from geoquant.export.protocol import EXPORTERS, Contents, StoredLayer, export_model, need
from geoquant.export.shards import NOTE_KEY, opened, read_json, verify, write_file
from geoquant.export.states import refuse_activations, state_of
from geoquant.grids import Grid, PerTensor, QuantizedMatrix
from geoquant.models import Site, get_weight, inference, other_tensors, predict
from geoquant.plan import CONFIGURATIONS, Plan
from geoquant.storage import Json, atomic_folder, digest

_CLASS = "IntxUnpackedToInt8Tensor"
_PARTS = ("qdata", "scale", "zero_point")


class TorchAo:
    """A folder with torchao's tensors in safetensors; a byte per weight."""

    name = "torchao"
    suffix = ""
    options: Mapping[str, str] = {
        "tokenizer": "folder whose tokenizer files are copied; that of the model when it came from one"
    }

    def tolerance(self, plan: Plan) -> float:
        """Float32 products in another order."""
        return 1e-6

    def layers(self, plan: Plan, **options: Any) -> tuple[StoredLayer, ...]:
        """Foretell codes of a byte, scales and zero points of every site."""
        refuse_activations(plan, "torchao's integer tensors hold weights only")
        found = zip(packings_of(plan, "keep").items(), plan.grids, strict=True)
        return tuple(_layer(plan, site, grid, packed) for (site, packed), grid in found)

    def write(self, model: nn.Module, plan: Plan, path: Path, **options: Any) -> Contents:
        """Write configuration, weights and tokenizer files."""
        state = state_of(model, plan)
        layers = self.layers(plan, **options)
        support = need("torchao.prototype.safetensors.safetensors_support", "torchao")
        tensors, metadata = support.flatten_tensor_state_dict(_tensors(model, plan, state.matrices))
        note: Json = {"version": 1, "layers": {layer.name: [layer.grid, layer.reason] for layer in layers}}
        note["metadata"] = digest(metadata)
        with atomic_folder(path) as folder:
            write_file(folder / WEIGHTS_FILE, tensors, note, metadata)
            write_configuration(folder, model, _quantization(plan))
            copy_tokenizer(folder, model, options.get("tokenizer"))
        return self.contents(path)

    def recognizes(self, path: Path) -> bool:
        """Whether the folder's configuration names torchao."""
        try:
            stated = read_json(path / CONFIG_FILE).get("quantization_config")
        except FileFormatError:
            return False
        return isinstance(stated, dict) and stated.get("quant_method") == "torchao"

    def contents(self, path: Path) -> Contents:
        """List torchao's tensors and dense weights; verify the checksum of files that geoquant wrote."""
        if not self.recognizes(path):
            raise FileFormatError(f"{path / CONFIG_FILE} does not name torchao; expected the folder of such a model")
        with opened(path / WEIGHTS_FILE) as stored:
            metadata = stored.metadata
            sizes = {name: stored.entry(name) for name in stored}
            note = verify(path / WEIGHTS_FILE, stored)
            if note is not None and note.get("metadata") != digest(_own(metadata)):
                raise FileFormatError(f"{path / WEIGHTS_FILE} was changed after it was written; write it again")
            stated = {} if note is None else note.get("layers", {})
            layers = []
            for name in json.loads(metadata.get("tensor_names", "[]")):
                parts = [part for part in _part_names(name) if part in sizes]
                grid, reason = stated.get(name, ("", ""))
                if parts:
                    size = sum(sizes[part].bytes for part in parts)
                    layers.append(StoredLayer(name, grid, _label(json.loads(metadata[name])), size, reason))
                elif name in stated:
                    layers.append(StoredLayer(name, grid, _dense_label(sizes[name].dtype), sizes[name].bytes, reason))
        total = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        others = sum(entry.bytes for entry in sizes.values()) - sum(layer.bytes for layer in layers)
        said = (
            "the SHA-256 of all tensors matches" if note else "the weight file carries no checksum; its form is whole"
        )
        return Contents(self.name, path, total, tuple(layers), others, (said,))

    def load(self, path: Path, model: nn.Module) -> Callable[[Any], Tensor]:
        """Return the forward of a copy of `model` that computes with torchao's tensors."""
        self.contents(path)
        support = need("torchao.prototype.safetensors.safetensors_support", "torchao")
        with opened(path / WEIGHTS_FILE) as stored:
            found, left = support.unflatten_tensor_state_dict(dict(stored), stored.metadata)
        loaded = copy.deepcopy(model)
        _fill_(path, loaded, {**left, **found})

        def logits(batch: Any) -> Tensor:
            with inference(loaded):
                return predict(loaded, batch)

        return logits


def torchao(model: nn.Module, plan: Plan, folder: Path | str, **options: Any) -> Contents:
    """Write the quantized `model` into a new `folder` with torchao's tensors, which transformers loads.

    Args:
        model: quantized by `plan`.
        plan: its grids.
        folder: does not exist yet, or is empty.
        options: those of `TorchAo.options`.

    Raises:
        ExportError: a layer is not linear, or its grid is none of integers up to 8 bits; it is named.
        PlanError: the model is not quantized by this plan, or was changed since.
        OutputError: the folder cannot be written; nothing is left half written.
    """
    return export_model(model, plan, folder, "torchao", **options)


@CONFIGURATIONS.add("torchao")
def torchao_config(plan: Plan) -> Any:
    """Return the `FqnToConfig` with which ``torchao.quantization.quantize_`` quantizes a float model as `plan` would.

    Widths, groups and zero points are the plan's. Scales are fitted by torchao, from the largest weight: those of
    ``maxabs`` grids up to rounding, which may put a largest weight, half a step from two levels, on the other one.
    Other scales, and rounding with data, are not part of such a configuration; `torchao` hands those on. Call
    ``quantize_(model, config, filter_fn=None)``.

    Raises:
        ExportError: a layer is not linear, or its grid is none of integers up to 8 bits; activations are quantized.
        MissingExtraError: torchao is not installed.
    """
    refuse_activations(plan, "torchao's integer tensors hold weights only")
    quantization = need("torchao.quantization", "torchao")
    packings = {module_of(site.parameter): packed for site, packed in packings_of(plan, "keep").items()}
    found = ((name, _config(quantization, packed)) for name, packed in packings.items() if packed is not None)
    return need("torchao.quantization.quant_api", "torchao").FqnToConfig(OrderedDict(found))


def _config(quantization: Any, packed: Packing) -> Any:
    return quantization.IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{packed.bits}"),
        granularity=quantization.PerAxis(0) if packed.group is None else quantization.PerGroup(packed.group),
        mapping_type=quantization.MappingType.SYMMETRIC if packed.symmetric else quantization.MappingType.ASYMMETRIC,
    )


def _quantization(plan: Plan) -> Json:
    """Return what transformers' own ``TorchAoConfig`` would say."""
    made = need("torchao.core.config", "torchao").config_to_dict(torchao_config(plan))
    return {
        "quant_method": "torchao",
        "quant_type": {"default": made},
        "include_input_output_embeddings": False,
        "modules_to_not_convert": None,
    }


def _layer(plan: Plan, site: Site, grid: Grid, packed: Packing | None) -> StoredLayer:
    if packed is None:
        return dense_layer(plan, site, grid)
    groups = site.shape[0] * (1 if packed.group is None else site.shape[1] // packed.group)
    size = math.prod(site.shape) + groups * (stored_scale(grid).itemsize + 1)
    planned = sum(part.bytes for part in grid.stored(site.matrix_shape))
    reason = "torchao keeps a byte per code and per zero point" if size > planned else ""
    return StoredLayer(site.parameter, str(grid), f"int{packed.bits}", size, reason)


def _tensors(model: nn.Module, plan: Plan, matrices: Mapping[str, QuantizedMatrix]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for site, packed in packings_of(plan, "keep").items():
        weight, matrix = get_weight(model, site), matrices[site.parameter]
        if packed is None:
            found[site.parameter] = weight.to(dense_dtype(plan, matrix.grid)).clone()
            continue
        found[site.parameter] = _tensor(matrix, packed, model_dtype(model))
        if not torch.equal(found[site.parameter].dequantize(), weight):
            raise ExportError(f"the weights of '{site.name}' would not come back from torchao as they are in the model")
    for name, tensor in other_tensors(model, plan.inventory.sites).items():
        found[name] = tensor.detach().clone()
    loose = [name for name in found if "." not in name]
    if loose:
        raise ExportError(f"torchao's files cannot name the parameter '{loose[0]}', which belongs to no layer")
    return found


def _tensor(matrix: QuantizedMatrix, packed: Packing, dtype: torch.dtype) -> Any:
    scale, zero = matrix.scales.scale, matrix.scales.zero
    if isinstance(matrix.grid.granularity, PerTensor):
        scale = scale.expand(len(matrix.codes), 1)
        zero = None if zero is None else zero.expand(len(matrix.codes), 1)
    shift = 0 if zero is None else 2 ** (packed.bits - 1)
    codes = (matrix.grid.format.decode(matrix.codes) - shift).to(torch.int8)
    zeros = torch.zeros_like(scale, dtype=torch.int8) if zero is None else (zero - shift).to(torch.int8)
    stored = scale.to(stored_scale(matrix.grid)).contiguous()
    block = (1, packed.group or matrix.shape[1])
    width = getattr(torch, f"int{packed.bits}")
    made = need("torchao.quantization", "torchao").IntxUnpackedToInt8Tensor
    return made(codes, stored, zeros.contiguous(), width, block, dtype, None)


def _part_names(name: str) -> list[str]:
    module, _, kind = name.rpartition(".")
    return [f"{module}._{kind}_{part}" for part in _PARTS]


def _label(stated: Json) -> str:
    if stated.get("_type") != _CLASS:
        return str(stated.get("_type"))
    return str(stated["_data"]["target_dtype"]["_data"])


def _dense_label(code: str) -> str:
    return {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}.get(code, code)


def _own(metadata: Mapping[str, str]) -> Json:
    return {name: text for name, text in metadata.items() if name not in (NOTE_KEY, "format")}


def _fill_(path: Path, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put torchao's tensors in the place of weights and copy all others; everything is checked first."""
    targets: dict[str, Tensor] = dict(model.state_dict())
    wrong = [name for name, tensor in tensors.items() if name not in targets or targets[name].shape != tensor.shape]
    if wrong:
        raise WeightsError(
            f"{path} does not fit the model: tensor '{wrong[0]}' is unknown or of another shape ({len(wrong)} such); "
            "load it into the architecture it was made from"
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            if type(tensor) is Tensor:
                targets[name].copy_(tensor)
            else:
                model.get_submodule(module_of(name)).weight = nn.Parameter(tensor, requires_grad=False)


EXPORTERS.register("torchao", TorchAo())
