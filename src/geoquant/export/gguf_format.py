"""A file that llama.cpp runs: GGUF, with a type per tensor that follows the plan.

The integers of the plan are kept and laid into llama.cpp's blocks (`geoquant.export.gguf_types` says which); what no
block holds becomes float16 and is listed. The tensors of a file of ours, its metadata and its tokenizer are under one
SHA-256. Written for Llama and Mistral models of transformers; files of any model are read.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from geoquant.errors import ExportError, FileFormatError, GeoquantError, WeightsError
from geoquant.export.gguf_blocks import pack_blocks, unpack_blocks
from geoquant.export.gguf_llama import add_metadata, check_config, gguf_name, interleave, rotated_heads
from geoquant.export.gguf_tokens import add_tokens
from geoquant.export.gguf_types import (
    BLOCKS,
    FALLBACKS,
    TERNARIES,
    Choice,
    check_choice,
    choose_type,
    foretell_layer,
)
from geoquant.export.protocol import EXPORTERS, Contents, StoredLayer, export_model, need
from geoquant.export.states import refuse_activations, state_of
from geoquant.grids import QuantizedMatrix
from geoquant.models import Site, get_weight, inference, other_tensors, predict, source_folder
from geoquant.plan import Plan
from geoquant.storage import atomic_path, canonical

LAYERS_KEY, CHECKSUM_KEY = "geoquant.layers", "geoquant.sha256"
_EMPTY = "0" * 64


class Gguf:
    """One ``.gguf`` file with Q4_0, Q5_0, Q8_0, TQ1_0, TQ2_0 and float tensors."""

    name = "gguf"
    suffix = ".gguf"
    options: Mapping[str, str] = {
        "fallback": "float type for weights that no block type holds: F16 (default), F32 or BF16",
        "ternary": "type for ternary and binary weights: TQ1_0 (default, 1.69 bits) or TQ2_0 (2.06 bits)",
        "tokenizer": "folder whose tokenizer.json is written; that of the model when it came from one",
    }

    def tolerance(self, plan: Plan) -> float:
        """Scales are rounded to float16 once."""
        return 2e-3

    def layers(self, plan: Plan, **options: Any) -> tuple[StoredLayer, ...]:
        """Foretell the type and size of every weight."""
        found = zip(_choices(plan, options).items(), plan.grids, strict=True)
        return tuple(foretell_layer(site, _checked_name(site), grid, choice) for (site, choice), grid in found)

    def write(self, model: nn.Module, plan: Plan, path: Path, **options: Any) -> Contents:
        """Write metadata, tokenizer and tensors."""
        state = state_of(model, plan)
        layers = self.layers(plan, **options)
        choices = _choices(plan, options)
        config: Any = getattr(model, "config", None)
        check_config(config)
        gguf = need("gguf", "gguf")
        tensors = list(_tensors(model, choices, state.matrices, config))
        given = options.get("tokenizer")
        with atomic_path(path) as temporary:
            writer = gguf.GGUFWriter(temporary, "llama")
            add_metadata(writer, config, _file_type(gguf, layers), gguf.GGML_QUANT_VERSION)
            add_tokens(writer, Path(given) if given else source_folder(model), config.vocab_size)
            writer.add_string(LAYERS_KEY, canonical({layer.name: [layer.grid, layer.reason] for layer in layers}))
            writer.add_string(CHECKSUM_KEY, _EMPTY)
            for name, kind, array in tensors:
                writer.add_tensor(name, array, raw_dtype=gguf.GGMLQuantizationType[kind])
            writer.write_header_to_file(path=temporary)
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            _seal(temporary)
        return self.contents(path)

    def recognizes(self, path: Path) -> bool:
        """Whether the file starts with GGUF's four letters."""
        try:
            with path.open("rb") as file:
                return file.read(4) == b"GGUF"
        except OSError:
            return False

    def contents(self, path: Path) -> Contents:
        """List the tensors of two axes; verify the checksum of files that geoquant wrote."""
        with _opened(path) as reader:
            checked = _verify(path, reader)
            stated = json.loads(_text(reader, LAYERS_KEY) or "{}")
            layers, others = [], 0
            for tensor in reader.tensors:
                if len(tensor.shape) < 2:
                    others += int(tensor.n_bytes)
                    continue
                grid, reason = stated.get(tensor.name, ("", ""))
                layers.append(StoredLayer(tensor.name, grid, tensor.tensor_type.name, int(tensor.n_bytes), reason))
            notes = (
                "the SHA-256 of the whole file matches"
                if checked
                else "the file carries no checksum; its form is whole",
                f"GGUF version {int(reader.fields['GGUF.version'].parts[-1][0])}, architecture "
                f"{_text(reader, 'general.architecture') or 'not stated'}, "
                f"{'with' if 'tokenizer.ggml.tokens' in reader.fields else 'without'} a tokenizer",
            )
        return Contents(self.name, path, path.stat().st_size, tuple(layers), others, notes)

    def load(self, path: Path, model: nn.Module) -> Callable[[Any], Tensor]:
        """Return the forward of a copy of `model` with the file's decoded weights."""
        self.contents(path)
        loaded = copy.deepcopy(model)
        config = getattr(model, "config", None)
        with _opened(path) as reader, torch.no_grad():
            stored = {tensor.name: tensor for tensor in reader.tensors}
            for name, target in loaded.state_dict().items():
                place = gguf_name(name)
                if place not in stored and name == "lm_head.weight":
                    continue  # tied to the embedding
                if place is None or place not in stored:
                    raise WeightsError(f"{path} does not fit the model: it has no tensor for '{name}'")
                matrix = torch.from_numpy(unpack_blocks(stored[place].data, stored[place].tensor_type.name).copy())
                if matrix.shape != target.shape:
                    raise WeightsError(
                        f"{path} does not fit the model: '{name}' is {tuple(matrix.shape)} in the file and "
                        f"{tuple(target.shape)} in the model"
                    )
                heads = rotated_heads(place, config)
                target.copy_(matrix if heads is None else matrix[interleave(len(matrix), heads).argsort()])

        def logits(batch: Any) -> Tensor:
            with inference(loaded):
                return predict(loaded, batch)

        return logits


def gguf(model: nn.Module, plan: Plan, path: Path | str, **options: Any) -> Contents:
    """Write the quantized `model` as a file that llama.cpp runs.

    Args:
        model: a Llama or Mistral of transformers, quantized by `plan`.
        plan: its grids; groups of 32 (ternary: 256) or whole rows are kept exactly.
        path: ends in ``.gguf``.
        options: those of `Gguf.options`.

    Raises:
        ExportError: it is another model, or activations are quantized.
        PlanError: the model is not quantized by this plan, or was changed since.
        OutputError: the file cannot be written; nothing is left half written.
    """
    return export_model(model, plan, path, "gguf", **options)


def gguf_types(plan: Plan, fallback: str = "F16", ternary: str = "TQ1_0") -> dict[str, Choice]:
    """Return a llama.cpp type for each layer of `plan`, and why it is not the plan's own width.

    `llama-quantize --tensor-type NAME=TYPE` takes them too, for a float model, which it then rounds by its own rules.
    """
    return {site.name: choose_type(site, grid, fallback, ternary) for site, grid in _pairs(plan)}


def _pairs(plan: Plan) -> Iterator[tuple[Site, Any]]:
    return zip(plan.inventory.sites, plan.grids, strict=True)


def _choices(plan: Plan, options: Mapping[str, Any]) -> dict[Site, Choice]:
    fallback = check_choice("fallback", options.get("fallback", "F16"), FALLBACKS)
    ternary = check_choice("ternary", options.get("ternary", "TQ1_0"), TERNARIES)
    refuse_activations(plan, "llama.cpp rounds them by rules of its own")
    for site in plan.inventory.sites:
        _checked_name(site)
    return {site: choose_type(site, grid, fallback, ternary) for site, grid in _pairs(plan)}


def _checked_name(site: Site) -> str:
    name = gguf_name(site.parameter)
    if name is None or site.view != "rows":
        raise ExportError(
            f"'{site.name}' is no layer of a Llama (expected names such as model.layers.0.mlp.up_proj); GGUF files are "
            "written for llama and mistral models only"
        )
    return name


def _tensors(
    model: nn.Module, choices: Mapping[Site, Choice], matrices: Mapping[str, QuantizedMatrix], config: Any
) -> Iterator[tuple[str, str, NDArray[Any]]]:
    for site, choice in choices.items():
        name = _checked_name(site)
        heads = rotated_heads(name, config)
        rows = torch.arange(site.shape[0]) if heads is None else interleave(site.shape[0], heads)
        if choice.coded:
            yield name, choice.type, _coded(site, choice.type, matrices[site.parameter], rows)
        else:
            yield name, choice.type, _plain(get_weight(model, site)[rows], choice.type)
    for parameter, tensor in other_tensors(model, tuple(choices)).items():
        name_of_other = gguf_name(parameter)
        if name_of_other is None:
            raise ExportError(
                f"llama.cpp's Llama has no tensor for '{parameter}'; the model is a variant it does not run"
            )
        heads = rotated_heads(name_of_other, config)
        values = tensor if heads is None else tensor[interleave(len(tensor), heads)]
        yield name_of_other, "F32", _plain(values, "F32")


def _coded(site: Site, kind: str, matrix: QuantizedMatrix, rows: Tensor) -> NDArray[np.uint8]:
    count, fan_in = BLOCKS[kind][0], site.matrix_shape[1]
    levels = matrix.grid.format.decode(matrix.codes)
    granularity = matrix.grid.granularity
    if matrix.scales.zero is not None:
        levels = levels - granularity.expand(matrix.scales.zero, fan_in)
    spread = granularity.expand(matrix.scales.scale, fan_in).expand(site.matrix_shape)[:, ::count]
    scales = spread[rows].to(torch.float16)
    if not bool(torch.isfinite(scales).all()):
        raise ExportError(f"the scales of '{site.name}' exceed float16, which llama.cpp stores; use fp16 scales")
    return pack_blocks(kind, levels[rows].to(torch.int8).numpy(), scales.numpy())


def _plain(values: Tensor, kind: str) -> NDArray[Any]:
    array = values.detach().float().cpu().contiguous().numpy()
    packed: NDArray[Any] = need("gguf", "gguf").quants.quantize(array, need("gguf", "gguf").GGMLQuantizationType[kind])
    return packed


def _file_type(gguf: Any, layers: tuple[StoredLayer, ...]) -> int:
    """Return llama.cpp's word for the type that most bytes have."""
    sizes: dict[str, int] = {}
    for layer in layers:
        sizes[layer.stored] = sizes.get(layer.stored, 0) + layer.bytes
    most = max(sizes, key=lambda kind: sizes[kind])
    return int(gguf.LlamaFileType["ALL_F32" if most == "F32" else f"MOSTLY_{most}"])


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    gguf = need("gguf", "gguf")
    try:
        yield gguf.GGUFReader(path)
    except GeoquantError:
        raise
    except (
        OSError,
        ValueError,
        IndexError,
        KeyError,
        TypeError,
        AttributeError,
        ArithmeticError,
        MemoryError,
    ) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise FileFormatError(f"{path} is not a whole GGUF file ({reason}); copy or write it again") from error


def _text(reader: Any, key: str) -> str | None:
    field = reader.fields.get(key)
    return None if field is None else str(bytes(field.parts[-1]), "utf-8")


def _digest(reader: Any) -> str:
    """Return the SHA-256 of the whole file, with zeros where the checksum itself stands."""
    start = reader.fields[CHECKSUM_KEY].parts[-1].ctypes.data - reader.data.ctypes.data
    total = hashlib.sha256(reader.data[:start])
    total.update(_EMPTY.encode())
    total.update(reader.data[start + len(_EMPTY) :])
    return total.hexdigest()


def _seal(path: Path) -> None:
    """Write the checksum into its place."""
    reader = need("gguf", "gguf").GGUFReader(path, "r+")
    place = reader.fields[CHECKSUM_KEY].parts[-1]
    place[:] = np.frombuffer(_digest(reader).encode(), np.uint8)
    reader.data.flush()


def _verify(path: Path, reader: Any) -> bool:
    stated = _text(reader, CHECKSUM_KEY)
    if stated is None:
        return False
    if len(stated) != len(_EMPTY) or _digest(reader) != stated:
        raise FileFormatError(f"{path} was changed after it was written (its checksum does not match); write it again")
    return True


EXPORTERS.register("gguf", Gguf())
