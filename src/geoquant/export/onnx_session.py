"""How is an ONNX file run, and how exactly does that agree with torch?

ONNX Runtime multiplies packed linears with inputs that it rounds to int8 in blocks (accuracy level 4), and fuses
quantization steps into integer kernels, which round once more and, on processors without VNNI, add pairs of products
in 16 bits, where they may overflow. An exact run does neither: every operator computes what its definition says.
Whether the kernels of this processor overflow is best asked of them (`int8_overflows`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geoquant.errors import DataError, FileFormatError
from geoquant.export.onnx_file import read
from geoquant.export.protocol import need
from geoquant.models import inputs_of


def open_session(path: Path, exact: bool = False, threads: int = 1) -> Any:
    """Return an ONNX Runtime session of the verified file at `path`.

    Args:
        path: what the exporter wrote.
        exact: multiply as torch does, instead of as fast as ONNX Runtime can.
        threads: it may use.

    Raises:
        FileFormatError: the file was changed, or ONNX Runtime does not take it.
    """
    proto, _ = read(path)
    if exact:
        for node in proto.graph.node:
            for attribute in node.attribute:
                if attribute.name == "accuracy_level":
                    attribute.i = 1
    return session_of(proto.SerializeToString(), exact, threads, str(path))


def session_of(text: bytes, exact: bool, threads: int, what: str) -> Any:
    """Return a session of serialized ONNX on the CPU; see `open_session`."""
    runtime = need("onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 4
    if exact:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    try:
        return runtime.InferenceSession(text, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own classes, one for each status
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        raise FileFormatError(f"ONNX Runtime does not take {what}: {reason}") from error


def feeds(session: Any, batch: Any) -> dict[str, Any]:
    """Return what `session` is fed with for a batch (see `geoquant.models.predict`).

    Raises:
        DataError: the batch has not the file's inputs.
    """
    names = [each.name for each in session.get_inputs()]
    inputs = inputs_of(batch)
    if isinstance(inputs, Mapping):
        missing = [name for name in names if name not in inputs]
        if missing:
            raise DataError(f"the batch has no '{missing[0]}', which the file asks for; it has {', '.join(inputs)}")
        return {name: inputs[name].numpy() for name in names}
    tensors = inputs if isinstance(inputs, tuple) else (inputs,)
    if len(tensors) != len(names):
        raise DataError(f"the file takes {len(names)} inputs ({', '.join(names)}), the batch has {len(tensors)}")
    return {name: tensor.detach().cpu().numpy() for name, tensor in zip(names, tensors, strict=True)}


def run_exactly(path: Path) -> Callable[[Any], Tensor]:
    """Return a function from a batch to logits, computed by ONNX Runtime as exactly as it can."""
    session = open_session(path, exact=True)

    def logits(batch: Any) -> Tensor:
        found: Tensor = torch.from_numpy(session.run(None, feeds(session, batch))[0])
        return found

    return logits


@cache
def int8_overflows() -> bool:
    """Whether ONNX Runtime's kernels for int8 weights overflow on this processor, as on x86 without VNNI.

    Asked of a product of the largest uint8 activations and int8 weights: pairs of 255 · 127 do not fit into 16 bits.
    Files exported with ``kernels="vnni"`` are for processors where this is False. It says nothing of speed.

    Raises:
        MissingExtraError: onnx or onnxruntime is not installed.
    """
    onnx = need("onnx", "onnx")
    types, length = onnx.TensorProto, 64
    weights = onnx.numpy_helper.from_array(np.full((length, 1), 127, np.int8), "w")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "pairs",
        [onnx.helper.make_tensor_value_info("x", types.UINT8, [1, length])],
        [onnx.helper.make_tensor_value_info("y", types.INT32, [1, 1])],
        [weights],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    session = session_of(model.SerializeToString(), False, 1, "a product of integers")
    found = session.run(None, {"x": np.full((1, length), 255, np.uint8)})[0]
    return bool(found[0, 0] != length * 255 * 127)
