"""How is a model quantized that does not fit into memory?

Block after block: a block's weights are read from the mapped files, rounded for the inputs that the already
quantized blocks before it give (`geoquant.quantize_` does it, so the codes are the same as of the whole model in
memory), packed, written, and let go. In memory at a time: embeddings, last norm and head; two copies of one block, and
what rounding needs for one layer of it; and the hidden states between two blocks of all calibration batches with the
activations inside one block (tokens × (width + the widest layer) × 4 bytes). A rerun goes on after the last block that
was written.

Where it stops: norms and biases are not corrected, activations stay in float, and codes are not learned together
afterwards. Embeddings are rounded to nearest unless they are tied to the head; then the head's inputs are measured in
one walk of the float model, as `quantize_` does.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from geoquant.data import collect, fingerprint
from geoquant.errors import ModelError, PlanError
from geoquant.export import PLAN_FILE
from geoquant.grids import QuantizedMatrix
from geoquant.models import (
    Arrival,
    Inventory,
    Site,
    find_sites,
    get_weight,
    has_patches,
    other_tensors,
    set_weight_,
    take_inventory,
    walk_in_lockstep,
)
from geoquant.models.entering import owners
from geoquant.models.moments import input_moment, moment_of_all_calls
from geoquant.plan import Plan
from geoquant.progress import task as working
from geoquant.quantize import forget_, quantize_, quantized_state
from geoquant.rounding import ROUNDINGS, RoundingContext, uses_inputs
from geoquant.storage import digest
from geoquant.streaming.checkpoint import Checkpoint
from geoquant.streaming.parts import Parts
from geoquant.streaming.passages import Call, Passages
from geoquant.streaming.skeleton import Skeleton, empty_, fill_, make_skeleton

_OUTSIDE = "outside"


@dataclass(frozen=True)
class Streamed:
    """What a streamed quantization did.

    Attributes:
        path: of the artifact.
        seconds: per block; 0 for blocks of an earlier run.
        unseen: sites that were rounded without their inputs although the rounding asked for them.
    """

    path: Path
    seconds: tuple[float, ...]
    unseen: tuple[str, ...]


def quantize_folder(
    folder: Path | str,
    plan: Plan,
    output: Path | str,
    calibration: Iterable[Any] | None = None,
    *,
    rounding: str | None = None,
    task: str | None = None,
    seed: int = 0,
) -> Streamed:
    """Quantize the model of a Hugging Face folder by `plan` without ever holding it whole.

    Args:
        folder: with ``config.json`` and safetensors.
        plan: made for this model (see `profile_folder`).
        output: folder for the artifact, the same that `save` would write.
        calibration: batches; needed by roundings that look at inputs.
        rounding: ``gptq`` with calibration, ``nearest`` without, by default; ``descent`` is better and takes several
            times as long on wide layers.
        task: what the model is for; the folder's own word by default.
        seed: of every random draw.

    Raises:
        PlanError: the plan is of another model, quantizes activations, or calibration is missing.
        ModelError: the model has no list of blocks, or blocks share weights.
        FileFormatError, WeightsError: the files are not whole or lack a weight.
        OutputError: the output cannot be written; parts that are finished stay for the next run.
    """
    name = rounding or ("nearest" if calibration is None else "gptq")
    seen = uses_inputs(ROUNDINGS[name])
    if plan.activations:
        raise PlanError("streaming leaves activations in float; drop them with plan.with_activations(None)")
    if seen and calibration is None:
        raise PlanError(f"the rounding '{name}' looks at the layers' inputs; pass calibration batches")
    batches = collect(calibration) if seen and calibration is not None else ()
    with Checkpoint(folder) as weights:
        skeleton = make_skeleton(folder, weights, task)
        inventory = skeleton.inventory(weights)
        plan.inventory.check_same_layout(inventory)
        _check_ties(skeleton)
        data = fingerprint(batches) if batches else ""
        run = {"model": inventory.fingerprint, "rounding": name, "seed": seed, "data": data}
        parts = Parts(output, digest({**run, "plan": list(plan.names)}))
        return _Stream(skeleton, weights, plan, name, seed, parts).run(Path(output), inventory, batches)


def _check_ties(skeleton: Skeleton) -> None:
    depth = skeleton.list_name.count(".") + 2
    for site in skeleton.sites:
        names = (site.parameter, *site.aliases)
        if len({skeleton.is_inside(name) and name.split(".")[depth - 1] for name in names}) > 1:
            raise ModelError(f"'{site.name}' is shared between blocks; quantize this model whole")


class _Stream:
    """One streamed run."""

    def __init__(
        self, skeleton: Skeleton, weights: Checkpoint, plan: Plan, rounding: str, seed: int, parts: Parts
    ) -> None:
        self._skeleton, self._weights, self._plan, self._seed, self._parts = skeleton, weights, plan, seed, parts
        self._rounding, self._method = rounding, ROUNDINGS[rounding]
        self._model, self._blocks = skeleton.model, skeleton.blocks
        self._outside = [index for index, site in enumerate(skeleton.sites) if not skeleton.is_inside(site.parameter)]
        self._matrices: dict[str, QuantizedMatrix] = {}
        self._seconds = [0.0] * len(self._blocks)
        self._unseen: list[str] = []

    def run(self, output: Path, inventory: Inventory, batches: Sequence[Any]) -> Streamed:
        """Quantize all parts and write the artifact."""
        stored = self._model.state_dict()
        self._fill_(self._model, [name for name in stored if not self._skeleton.is_inside(name)])
        names = [f"block-{index:04d}" for index in range(len(self._blocks))]
        with working("quantizing blocks", len(names)) as advance:
            if batches:
                self._walk(names, batches, advance)
            else:
                for index, name in enumerate(names):
                    if not self._parts.has(name):
                        self._do(index, name, None, None)
                    advance()
                for index in self._outside:
                    self._round(index, None)
        self._write_outside()
        path = self._parts.assemble([*names, _OUTSIDE], output, self._plan, inventory)
        self._plan.save(output / PLAN_FILE)
        return Streamed(path, tuple(self._seconds), tuple(self._unseen))

    def _walk(self, names: Sequence[str], batches: Sequence[Any], advance: Any) -> None:
        passages = Passages(self._model, self._skeleton.list_name, batches)
        self._fill_block_(0)
        wraps = passages.answers_with_tuple()
        empty_(self._blocks[0])
        multiplied = {index: self._multipliers(index) for index in self._outside}
        tied = {index: found for index, found in multiplied.items() if found and self._is_read_first(index)}
        self._round_tied(tied, passages, wraps)
        for index in self._outside:
            if not multiplied[index]:
                self._round(index, None)
        calls, hidden = passages.calls(wraps), passages.first_hidden()
        for index, name in enumerate(names):
            self._do(index, name, calls[index], hidden)
            calls[index] = []
            advance()
        heads = {index: found for index, found in multiplied.items() if found and index not in tied}
        self._round_heads(heads, passages, hidden)

    def _do(self, index: int, name: str, calls: list[Call] | None, hidden: list[Tensor] | None) -> None:
        """Quantize one block, or take it from an earlier run; move the hidden states behind it."""
        start = time.perf_counter()
        block, prefix = self._blocks[index], f"{self._skeleton.block_name(index)}."
        self._fill_block_(index)
        if self._parts.has(name):
            self._restore_(block, prefix, self._parts.read(name))
        else:
            self._quantize_block_(block, prefix, calls, hidden)
            self._parts.write(name, self._packed(block, prefix))
            forget_(block)
            self._seconds[index] = time.perf_counter() - start
        if calls is not None and hidden is not None:
            with torch.no_grad():
                for place, call in enumerate(calls):
                    hidden[place] = call.on(block, hidden[place])
        empty_(block)

    def _quantize_block_(
        self, block: nn.Module, prefix: str, calls: list[Call] | None, hidden: list[Tensor] | None
    ) -> None:
        own = take_inventory(block)
        first = [site.parameter for site in self._skeleton.sites].index(prefix + own.sites[0].parameter)
        plan = Plan(own, self._plan.names[first : first + len(own.sites)])
        settings: dict[str, Any] = {"rounding": self._rounding, "norms": "none", "seed": self._seed + first}
        if calls is None or hidden is None:
            quantize_(block, plan, **settings)
            return

        def forward(model: nn.Module, batch: Any) -> Tensor:
            return calls[int(batch)].on(model, hidden[int(batch)])

        quantize_(block, plan, [torch.tensor([place]) for place in range(len(calls))], forward=forward, **settings)
        self._unseen += [f"{prefix}{name}" for name in quantized_state(block).unseen]

    def _packed(self, block: nn.Module, prefix: str) -> dict[str, Tensor]:
        state = quantized_state(block)
        tensors = {
            f"{prefix}{site.parameter}.{suffix}": part
            for site in state.plan.inventory.sites
            for suffix, part in state.matrices[site.parameter].pack().items()
        }
        others = other_tensors(block, state.plan.inventory.sites)
        return tensors | {f"{prefix}{name}": tensor.detach() for name, tensor in others.items()}

    def _restore_(self, block: nn.Module, prefix: str, tensors: dict[str, Tensor]) -> None:
        """Give a block the weights that an earlier run found."""
        grids = dict(zip((site.parameter for site in self._skeleton.sites), self._plan.grids, strict=True))
        for site in find_sites(block):
            grid, full = grids[prefix + site.parameter], prefix + site.parameter
            stored = {part.suffix: tensors[f"{full}.{part.suffix}"] for part in grid.stored(site.matrix_shape)}
            matrix = QuantizedMatrix.unpack(grid, site.matrix_shape, stored)
            set_weight_(block, site, site.restore(matrix.dequantize()))

    def _multipliers(self, index: int) -> list[str]:
        """Return the names of the layers outside of blocks that multiply by a site's weight."""
        site = self._skeleton.sites[index]
        paths = [parameter.rpartition(".")[0] for parameter in (site.parameter, *site.aliases)]
        return [path for path in paths if has_patches(self._model.get_submodule(path))]

    def _is_read_first(self, index: int) -> bool:
        """Say whether an embedding in front of the blocks shares this weight."""
        site = self._skeleton.sites[index]
        return any(not has_patches(owner) for owner, _ in owners(self._model, site))

    def _round_tied(self, tied: dict[int, list[str]], passages: Passages, wraps: bool) -> None:
        """Round embeddings for what the head multiplies, measured in the float model."""
        if not tied:
            return
        calls, hidden = passages.calls(wraps), passages.first_hidden()
        with torch.no_grad(), working("measuring the head's inputs", len(self._blocks)) as advance:
            for index, block in enumerate(self._blocks):
                self._fill_block_(index)
                for place, call in enumerate(calls[index]):
                    hidden[place] = call.on(block, hidden[place])
                empty_(block)
                advance()
        forward = passages.finishing_with(hidden)
        for index, names in tied.items():
            self._round(index, moment_of_all_calls(self._model, range(len(hidden)), names, forward))

    def _round_heads(self, heads: dict[int, list[str]], passages: Passages, hidden: Sequence[Tensor]) -> None:
        """Round what comes behind the blocks for what the quantized blocks give."""
        stations = {self._model.get_submodule(names[0]): index for index, names in heads.items()}

        def act(station: nn.Module, arrivals: Sequence[Arrival]) -> None:
            index = stations[station]
            self._round(index, input_moment(station, self._skeleton.sites[index], arrivals))

        if stations:
            forward = passages.finishing_with(hidden)
            walk_in_lockstep(self._model, range(len(hidden)), list(stations), act, forward)
        for index in heads:
            self._round(index, None)

    def _round(self, index: int, moment: Tensor | None) -> None:
        site, grid = self._skeleton.sites[index], self._plan.grids[index]
        if site.parameter in self._matrices:
            return
        if moment is None and uses_inputs(self._method) and grid.granularity.scaled:
            self._unseen.append(site.name)
        matrix = site.matrix(get_weight(self._model, site)).float()
        found = self._method(matrix, grid, RoundingContext(moment, self._seed + index))
        self._matrices[site.parameter] = found
        set_weight_(self._model, site, site.restore(found.dequantize()))

    def _write_outside(self) -> None:
        sites: tuple[Site, ...] = tuple(self._skeleton.sites[index] for index in self._outside)
        tensors = {
            f"{site.parameter}.{suffix}": part
            for site in sites
            for suffix, part in self._matrices[site.parameter].pack().items()
        }
        for name, tensor in other_tensors(self._model, sites).items():
            if not self._skeleton.is_inside(name):
                tensors[name] = tensor.detach().clone()
        self._parts.write(_OUTSIDE, tensors)

    def _fill_block_(self, index: int) -> None:
        prefix = f"{self._skeleton.block_name(index)}."
        stored = {
            name.removeprefix(prefix): held for name, held in self._skeleton.names.items() if name.startswith(prefix)
        }
        fill_(self._blocks[index], list(stored), self._weights, stored)

    def _fill_(self, model: nn.Module, names: Sequence[str]) -> None:
        fill_(model, names, self._weights, self._skeleton.names)
