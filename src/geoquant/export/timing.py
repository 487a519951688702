"""How long does each layer take at each grid, in ONNX Runtime on this machine?

Every layer is exported alone, on the inputs that it gets in the model, and timed at each grid: medians, in one run.
Layers that are alike are timed once. Activations stay in float, and MatMulNBits runs as fast as it can (accuracy
level 4). Times of layers add up to less than the model takes: the rest, measured in float32, is the table's base.
Overlap, caches and fusions across layers are not seen; a whole model is timed by `time_session`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from geoquant.errors import ExportError
from geoquant.export.onnx_format import serialize_graph
from geoquant.export.onnx_graph import example_for, trace
from geoquant.export.onnx_session import feeds, session_of
from geoquant.export.onnx_types import choose
from geoquant.export.protocol import need
from geoquant.grids import Grid
from geoquant.models import Site, find_sites, inference, predict, take_inventory
from geoquant.plan import LatencyTable, uniform_plan
from geoquant.progress import task
from geoquant.quantize import quantize, quantized_state

GRIDS = ("fp32", "int8", "int4", "int2")
_WARM = 3


def measure_latency(
    model: nn.Module, batch: Any = None, grids: Iterable[str] = GRIDS, repeats: int = 30, threads: int = 1
) -> LatencyTable:
    """Return milliseconds of every site at every grid, which a latency budget reads.

    Args:
        model: float, in any mode; it is not changed.
        batch: of the size that the times are for; one made-up sample when None.
        grids: to time; fp32 is timed in any case.
        repeats: runs per time, of which the median counts.
        threads: that ONNX Runtime may use.

    Raises:
        ExportError: a layer is not called with tensors, or cannot be traced.
        MissingExtraError: onnx, onnxscript or onnxruntime are not installed.
    """
    chosen = list(dict.fromkeys(["fp32", *(str(Grid.parse(grid)) for grid in grids)]))
    if batch is None:
        batch = example_for(model, uniform_plan(model, "fp32"))[0][:1]
    owners = _owners(model)
    entered = _inputs(model, batch, owners)
    found: dict[Any, dict[str, float]] = {}
    times: dict[str, dict[str, float]] = {}
    with task("timing layers", len(owners)) as advance:
        for site, owner in owners:
            key = (*_kind(entered[owner]), repr(owner), site.shape)
            if key not in found:
                found[key] = _layer_times(owner, site, entered[owner], chosen, repeats, threads)
            times[site.name] = found[key]
            advance()
    whole = _Timed(model, batch, threads).milliseconds("fp32", None, repeats)
    base = whole - sum(row["fp32"] for row in times.values())
    return LatencyTable.of(times, max(base, 0.0))


def time_session(session: Any, fed: dict[str, Any], repeats: int) -> float:
    """Return the median of `repeats` runs of an ONNX Runtime session in milliseconds, after a few that do not count."""
    seconds = []
    for index in range(_WARM + repeats):
        start = time.perf_counter()
        session.run(None, fed)
        if index >= _WARM:
            seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds)


class _Timed:
    """A module traced once, to be timed with its weights on several grids."""

    def __init__(self, module: nn.Module, batch: Any, threads: int) -> None:
        self._module, self._threads = module, threads
        ir = need("onnx_ir", "onnx")
        self._serde: Any = ir.serde
        self._graph = self._serde.serialize_model(trace(module, batch, 18, free=False))
        self._batch = batch

    def milliseconds(self, grid: str, site: str | None, repeats: int) -> float:
        """Return milliseconds with `site` (or everything) on `grid`, and the rest in float32."""
        plan = uniform_plan(take_inventory(self._module), "fp32", None if site is None else {site: grid})
        choices, opset = choose(plan, None, "auto")
        graph = self._serde.deserialize_model(self._graph)
        graph.opset_imports[""] = opset
        state = quantized_state(quantize(self._module, plan))
        text = serialize_graph(graph, choices, state, 4, opset)
        session = session_of(text, False, self._threads, "the layer")
        return time_session(session, feeds(session, self._batch), repeats)


def _layer_times(
    owner: nn.Module, site: Site, batch: Any, grids: list[str], repeats: int, threads: int
) -> dict[str, float]:
    """Time one weight of `owner`; what the owner takes in float32 is shared by its weights."""
    own = find_sites(owner)
    local = next(each.name for each in own if site.parameter.endswith(each.parameter) and each.shape == site.shape)
    timed = _Timed(owner, batch, threads)
    plain = timed.milliseconds("fp32", None, repeats)
    row = {grid: timed.milliseconds(grid, local, repeats) for grid in grids if grid != "fp32"}
    share = plain / len(own)
    return {"fp32": share, **{grid: max(value - plain + share, 0.0) for grid, value in row.items()}}


def _owners(model: nn.Module) -> list[tuple[Site, nn.Module]]:
    """Return each site with the module that multiplies it; torch's attention multiplies what it contains."""
    found = []
    for site in find_sites(model):
        path = site.parameter.rpartition(".")[0]
        parent = model.get_submodule(path.rpartition(".")[0])
        owner = parent if isinstance(parent, nn.MultiheadAttention) else model.get_submodule(path)
        found.append((site, owner))
    return found


def _inputs(model: nn.Module, batch: Any, owners: list[tuple[Site, nn.Module]]) -> dict[nn.Module, Any]:
    """Return the batch that each module gets when `model` is called on `batch`."""
    seen: dict[nn.Module, Any] = {}

    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.setdefault(module, args[0] if len(args) == 1 else (args, None))

    handles = [owner.register_forward_pre_hook(keep) for owner in {owner for _, owner in owners}]
    try:
        with inference(model):
            predict(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    for site, owner in owners:
        if owner not in seen or not all(isinstance(each, Tensor) for each in _tensors(seen[owner])):
            raise ExportError(
                f"'{site.name}' cannot be timed: its layer is not called with tensors alone; leave it out of the table"
            )
    return seen


def _tensors(batch: Any) -> tuple[Any, ...]:
    return batch[0] if isinstance(batch, tuple) else (batch,)


def _kind(batch: Any) -> tuple[Any, ...]:
    return tuple((tuple(each.shape), each.dtype) for each in _tensors(batch))
