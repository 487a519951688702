"""Which ONNX file computes what the quantized model does?

A file of standard `QuantizeLinear`/`DequantizeLinear`, which any ONNX engine reads, and for large linear layers ONNX
Runtime's `MatMulNBits`. Types and forms are chosen in `geoquant.export.onnx_types`, the graph is made in
`geoquant.export.onnx_graph`. Checked in ONNX Runtime on the CPU; what other engines do with the file is theirs to say.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from geoquant.errors import ExportError
from geoquant.export import onnx_file
from geoquant.export.onnx_graph import example_for, integer_type, trace
from geoquant.export.onnx_session import run_exactly
from geoquant.export.onnx_types import (
    KERNELS,
    LINEARS,
    NBITS,
    NEWEST_OPSET,
    OLDEST_OPSET,
    PORTABLE,
    VNNI,
    Choice,
    choose,
)
from geoquant.export.onnx_weights import pack_weights_
from geoquant.export.protocol import EXPORTERS, Contents, StoredLayer, export_model, need
from geoquant.export.states import state_of
from geoquant.plan import Plan
from geoquant.quantize import QuantizedState
from geoquant.storage import atomic_path

ACCURACY_LEVELS = (1, 4)


class Onnx:
    """One ``.onnx`` file: convolutions and linears at 2, 4, 8 and 16 bits, other widths in the next wider type."""

    name = "onnx"
    suffix = ".onnx"
    options = {  # noqa: RUF012 (read only)
        "opset": f"{OLDEST_OPSET} to {NEWEST_OPSET}; the least that holds the plan unless given",
        "linears": f"{', '.join(LINEARS)}: whether large linear layers become MatMulNBits",
        "kernels": f"{', '.join(KERNELS)}: whether 8-bit weights beside static activations fit any processor or VNNI",
        "accuracy_level": "of MatMulNBits: 4 (inputs rounded to int8 in blocks, fast) or 1 (float32)",
        "example": "a batch, for the shapes of the inputs",
    }

    def tolerance(self, plan: Plan) -> float:
        """Float32 sums in another order; one step of an activation grid, where some are on one."""
        return 0.05 if plan.activations else 1e-5

    def layers(self, plan: Plan, **options: Any) -> tuple[StoredLayer, ...]:
        """Foretell type and bytes of each weight; see `geoquant.export.onnx_types`."""
        return tuple(choice.layer() for choice in self._choices(plan, **options)[0])

    def write(self, model: nn.Module, plan: Plan, path: Path, **options: Any) -> Contents:
        """Trace the model, pack its weights, and write the file."""
        state = state_of(model, plan)
        choices, opset = self._choices(state.plan, **options)
        example, free = options.get("example"), False
        if example is None:
            example, free = example_for(model, state.plan)
        graph = trace(model, example, opset, free)
        text = serialize_graph(graph, choices, state, _accuracy_level(**options), opset)
        with atomic_path(path) as temporary:
            temporary.write_bytes(text)
        return self.contents(path)

    def recognizes(self, path: Path) -> bool:
        """Whether the name ends in ``.onnx`` and the file begins like a protocol buffer of ONNX."""
        try:
            with path.open("rb") as file:
                return path.suffix == self.suffix and file.read(1) == b"\x08"
        except OSError:
            return False

    def contents(self, path: Path) -> Contents:
        """Read and verify the file."""
        return onnx_file.contents(path, self.name)

    def load(self, path: Path, model: nn.Module) -> Callable[[Any], Tensor]:
        """Run the file in ONNX Runtime, as exactly as that can."""
        return run_exactly(path)

    def _choices(
        self, plan: Plan, opset: int | None = None, linears: str = "auto", kernels: str = PORTABLE, **_: Any
    ) -> tuple[tuple[Choice, ...], int]:
        return choose(plan, opset, linears, kernels)


def serialize_graph(graph: Any, choices: tuple[Choice, ...], state: QuantizedState, level: int, opset: int) -> bytes:
    """Pack the weights of a traced graph (`geoquant.export.onnx_graph.trace`), which is used up; return the file.

    Raises:
        ExportError: it would be larger than one ONNX file may be.
    """
    stored = pack_weights_(graph, choices, state.matrices, level)
    _clean_(graph)
    layers = {
        choice.site.parameter: [str(choice.grid), choice.stored, choice.layer().reason, stored[choice.site.parameter]]
        for choice in choices
    }
    return onnx_file.serialize(graph, layers, _notes(state.plan, choices, level, opset), state.plan.bytes)


def _accuracy_level(accuracy_level: int = 4, **_: Any) -> int:
    if accuracy_level not in ACCURACY_LEVELS:
        raise ExportError(f"accuracy_level={accuracy_level} is unknown; choose 4 (fast) or 1 (exact)")
    return accuracy_level


def _notes(plan: Plan, choices: tuple[Choice, ...], level: int, opset: int) -> list[str]:
    notes = [f"opset {opset}"]
    packed = sum(choice.form == NBITS for choice in choices)
    if packed and level == 4:
        notes.append(
            f"{packed} layers are multiplied by MatMulNBits, which rounds their inputs to int8 in blocks as it runs; "
            "accuracy_level=1 computes in float32"
        )
    notes += _kernel_notes(choices)
    traced = [
        name
        for name, grid in plan.activation_grids.items()
        if grid.dynamic or (found := integer_type(grid)) is None or found[1] > opset
    ]
    if traced:
        notes.append(f"the activation grids of {len(traced)} places are computed in float32 ({traced[0]} …)")
    return notes


def _kernel_notes(choices: tuple[Choice, ...]) -> list[str]:
    """Say for which processors 8-bit weights beside static activations were stored."""
    portable, vnni = (sum(choice.kernels == each for choice in choices) for each in (PORTABLE, VNNI))
    if vnni:
        return [
            f"8-bit weights of {vnni} layers are stored as int8 for processors with VNNI (kernels=vnni); do not run "
            "the file on x86 without it, where sums in ONNX Runtime overflow"
        ]
    if portable:
        return [
            f"8-bit weights of {portable} layers are stored as uint8, right on every processor (kernels=portable); "
            "kernels=vnni is faster on processors with VNNI"
        ]
    return []


def _clean_(model: Any) -> None:
    """Drop what nobody reads, and the names of files and functions that the trace carried along."""
    passes = need("onnx_ir.passes.common", "onnx")
    for each in (
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedOpsetsPass(),
        passes.ClearMetadataAndDocStringPass(),
    ):
        each(model)
    model.ir_version = 10 if model.opset_imports[""] < 23 else 13
    model.producer_name, model.producer_version = "geoquant", None


EXPORTERS.register("onnx", Onnx())


def onnx(model: nn.Module, plan: Plan, path: Path | str, **options: Any) -> Contents:
    """Write the quantized `model` as one ONNX file; return what was written.

    Args:
        model: quantized by `plan`; it is not changed.
        plan: that it was quantized by.
        path: of the file.
        options: ``example`` (a batch, whose shapes are those of the inputs; made up from the first layer where that
            is enough), ``opset``, ``linears``, ``kernels``, ``accuracy_level``; each is explained in
            ``EXPORTERS["onnx"].options``.

    Raises:
        PlanError: the model is not quantized by this plan, or was changed since.
        ExportError: the opset is too old for the plan, or the model cannot be traced.
        OutputError: the file cannot be written; nothing is left half written.
        MissingExtraError: onnx, onnxscript or onnxruntime are not installed.
    """
    return export_model(model, plan, path, "onnx", **options)
