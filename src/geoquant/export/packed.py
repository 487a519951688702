"""geoquant's own artifact: one safetensors file with dense codes, and the plan's evidence beside it.

``model.safetensors`` is everything that is needed to restore the weights, and its size is `Plan.bytes`
exactly. ``plan.json`` says why; nothing needs it to load. Loading runs no code from either: safetensors
and JSON only, checked against a SHA-256 of all tensors.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from geoquant.errors import FileFormatError, GridError, OutputError, WeightsError
from geoquant.export.packed_weights import pack_, without_weights
from geoquant.grids import ActivationGrid, ActivationScale, Grid, QuantizedMatrix
from geoquant.models import Inventory, Site, apply_folds_, other_tensors, take_inventory
from geoquant.plan import ARTIFACT_VERSION, METADATA_KEY, SCALES, ZEROS, Plan, activation_tensors, description, metadata
from geoquant.quantize import QuantizedState, attach_, left_in_float, quantized_state
from geoquant.storage import Json, atomic_path, canonical

WEIGHTS_FILE = "model.safetensors"
PLAN_FILE = "plan.json"

Model = TypeVar("Model", bound=nn.Module)


def save(model: nn.Module, plan: Plan, folder: Path | str) -> Path:
    """Write the quantized `model` into `folder`; return the path of ``model.safetensors``.

    Raises:
        PlanError: the model is not quantized by this plan, or was changed since.
        OutputError: the folder cannot be written or the disk is full; nothing is left half written.
    """
    state = quantized_state(model)
    state.plan.inventory.check_same_layout(plan.inventory)
    tensors = _packed(model, state)
    grids = [state.matrices[site.parameter].grid for site in plan.inventory.sites]
    described = description(plan.inventory, grids, state.plan.activations)
    header = metadata(described, checksum(described, tensors))
    target = Path(folder) / WEIGHTS_FILE
    with atomic_path(target) as weights:
        try:
            save_file(tensors, weights, header)
        except (SafetensorError, OSError) as error:
            raise OutputError(f"cannot write {target}: {error}; nothing was written, choose another place") from error
        plan.save(Path(folder) / PLAN_FILE)
    return target


def _packed(model: nn.Module, state: QuantizedState) -> dict[str, Tensor]:
    """Collect the file's tensors: packed parts of every site, and the rest as it is."""
    tensors = {}
    for site in state.plan.inventory.sites:
        for suffix, part in state.matrices[site.parameter].pack().items():
            tensors[f"{site.parameter}.{suffix}"] = part.contiguous()
    for name, tensor in other_tensors(model, state.plan.inventory.sites).items():
        tensors[name] = tensor.detach().cpu().contiguous().clone()
    static = [state.scales[name] for name, grid in state.plan.activation_grids.items() if not grid.dynamic]
    if static:
        tensors[SCALES] = torch.tensor([each.scale for each in static])
        tensors[ZEROS] = torch.tensor([each.zero for each in static], dtype=torch.int32)
    return tensors


def checksum(described: Json, tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over the header's description, and names, dtypes and bytes of `tensors` by name."""
    total = hashlib.sha256(canonical(described).encode())
    for name in sorted(tensors):
        total.update(f"{name}\0{tensors[name].dtype}\0".encode())
        total.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


@dataclass(frozen=True, eq=False)
class Artifact:
    """What an artifact file holds, read and verified.

    Attributes:
        grids: grid per parameter name.
        shapes: shape of each weight before it was packed.
        folds: (layer, batch norm) pairs to fold into a fresh model first.
        tensors: everything stored, by name.
        activations: (activation site, grid) pairs.
    """

    grids: dict[str, Grid]
    shapes: dict[str, tuple[int, ...]]
    folds: tuple[tuple[str, str], ...]
    tensors: dict[str, Tensor]
    activations: tuple[tuple[str, str], ...] = ()


def read_artifact(path: Path | str) -> Artifact:
    """Read ``model.safetensors`` (or the folder that holds it) and verify its checksum.

    Raises:
        FileFormatError: the file is missing, truncated, of another kind, newer, or was changed.
    """
    path = Path(path)
    path = path / WEIGHTS_FILE if path.is_dir() else path
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
            if text is None:
                raise FileFormatError(f"{path} holds plain weights, not a geoquant artifact; quantize the model first")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise FileFormatError(f"{path} is not a whole safetensors file ({error}); save the model again") from error
    return _parse(path, text, tensors)


def _parse(path: Path, text: str, tensors: dict[str, Tensor]) -> Artifact:
    try:
        document = json.loads(text)
        version = int(document["version"])
        if version > ARTIFACT_VERSION:
            raise FileFormatError(
                f"{path} has version {version}, this geoquant reads up to {ARTIFACT_VERSION}; upgrade geoquant"
            )
        grids = {name: Grid.parse(entry[0]) for name, entry in document["sites"].items()}
        shapes = {name: tuple(int(n) for n in entry[1]) for name, entry in document["sites"].items()}
        folds = tuple((str(a), str(b)) for a, b in document.get("folds", []))
        activations = tuple(
            (str(name), str(ActivationGrid.parse(grid))) for name, grid in document.get("activations", [])
        )
        stated = document.pop("sha256")
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, json.JSONDecodeError, GridError) as error:
        raise FileFormatError(f"{path} has a damaged geoquant header ({error}); save the model again") from error
    if stated != checksum(document, tensors):
        raise FileFormatError(f"{path} was changed after it was saved (its checksum does not match); save it again")
    return Artifact(grids, shapes, folds, tensors, activations)


def load(path: Path | str, model: Model, *, packed: bool = False) -> Model:
    """Return a copy of the fresh `model` with the artifact's weights in it.

    Its logits are bit-identical to those of the model that was saved. The file is mapped into memory, not read into
    it: a tensor takes room when it is first used.

    Args:
        path: the artifact's folder or its ``model.safetensors``.
        model: a model of the same architecture; its weights do not matter.
        packed: keep weights packed in memory and unpack each whenever its layer runs: a tenth of the memory, and
            slower. Such a model computes, and cannot be trained, saved or exported. Otherwise weights are float
            tensors, and the copy is quantized: it can be saved and exported again.

    Raises:
        FileFormatError: the file is not whole.
        WeightsError: the file does not fit the model's architecture.
    """
    artifact = read_artifact(path)
    if artifact.folds:
        model = copy.deepcopy(model)
        apply_folds_(model, artifact.folds)
    inventory = take_inventory(model)
    _check_fit(artifact, model, inventory)
    matrices = {site.parameter: _unpack(site, artifact) for site in inventory.sites} if not packed else {}
    names = tuple(str(artifact.grids[site.parameter]) for site in inventory.sites)
    plan = Plan(inventory, names, activations=artifact.activations)
    model = without_weights(model, inventory.sites) if packed else copy.deepcopy(model)
    with torch.no_grad():
        for name, tensor in other_tensors(model, inventory.sites).items():
            tensor.copy_(artifact.tensors[name])
    scales = _scales(artifact, plan)
    if packed:
        parts = {site.parameter: _parts(site, artifact) for site in inventory.sites}
        pack_(model, plan, parts, scales)
    else:
        state = QuantizedState(plan, matrices, scales=scales, in_float=left_in_float(model, plan, scales))
        attach_(model, state, inventory.sites)
    return model


def _scales(artifact: Artifact, plan: Plan) -> dict[str, ActivationScale]:
    names = [name for name, grid in plan.activation_grids.items() if not grid.dynamic]
    if not names:
        return {}
    pairs = zip(artifact.tensors[SCALES].tolist(), artifact.tensors[ZEROS].tolist(), strict=True)
    return {name: ActivationScale(*pair) for name, pair in zip(names, pairs, strict=True)}


def _parts(site: Site, artifact: Artifact) -> dict[str, Tensor]:
    stored = artifact.grids[site.parameter].stored(site.matrix_shape)
    return {part.suffix: artifact.tensors[f"{site.parameter}.{part.suffix}"] for part in stored}


def _unpack(site: Site, artifact: Artifact) -> QuantizedMatrix:
    return QuantizedMatrix.unpack(artifact.grids[site.parameter], site.matrix_shape, _parts(site, artifact))


def _check_fit(artifact: Artifact, model: nn.Module, inventory: Inventory) -> None:
    """Refuse an artifact whose tensors are not exactly those that this architecture needs."""
    wanted = {site.parameter: site.shape for site in inventory.sites}
    if wanted != artifact.shapes:
        wrong = sorted(name for name in wanted | artifact.shapes if wanted.get(name) != artifact.shapes.get(name))
        stored, own = artifact.shapes.get(wrong[0], "missing"), wanted.get(wrong[0], "missing")
        raise WeightsError(
            f"the artifact does not fit the model: weight '{wrong[0]}' is {stored} in the file and {own} in the "
            f"model ({len(wrong)} such); load it into the architecture it was saved from"
        )
    expected = {
        f"{site.parameter}.{part.suffix}": tuple(part.shape)
        for site in inventory.sites
        for part in artifact.grids[site.parameter].stored(site.matrix_shape)
    }
    expected |= {entry.name: entry.shape for entry in activation_tensors(artifact.activations)}
    expected |= {name: tuple(tensor.shape) for name, tensor in other_tensors(model, inventory.sites).items()}
    found = {name: tuple(tensor.shape) for name, tensor in artifact.tensors.items()}
    if expected != found:
        wrong = sorted(name for name in expected | found if expected.get(name) != found.get(name))
        raise WeightsError(
            f"the artifact does not fit the model: tensor '{wrong[0]}' is {found.get(wrong[0], 'missing')} in the file "
            f"and {expected.get(wrong[0], 'missing')} in the model ({len(wrong)} such)"
        )
