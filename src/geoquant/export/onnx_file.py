"""What does an ONNX file that geoquant wrote hold, and is it still as it was written?

The file's metadata lists, under the key ``geoquant``, which tensors hold each weight and on which grid it was, with
a SHA-256 over all nodes and tensors. Nothing here needs the model, and nothing from the file is run.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from geoquant.errors import ExportError, FileFormatError
from geoquant.export.protocol import Contents, StoredLayer, need
from geoquant.storage import Json, canonical

METADATA = "geoquant"
VERSION = 1
_LARGEST = 2**31 - 1


def serialize(model: Any, layers: Json, notes: Iterable[str], plan_bytes: int) -> bytes:
    """Return the bytes of an ONNX file: the `onnx_ir` model with geoquant's metadata.

    Raises:
        ExportError: it would be larger than the 2 GiB that one ONNX file may take.
    """
    ir = need("onnx_ir", "onnx")
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    if size > _LARGEST - (1 << 20):
        raise ExportError(
            f"the tensors take {size:,} bytes, and one ONNX file holds at most {_LARGEST:,}; export the model in parts"
        )
    proto = ir.serde.serialize_model(model)
    described = {"version": VERSION, "layers": layers, "notes": list(notes), "plan_bytes": plan_bytes}
    entry = proto.metadata_props.add()
    entry.key, entry.value = METADATA, canonical({**described, "sha256": _digest(proto, described)})
    text: bytes = proto.SerializeToString(deterministic=True)
    return text


def read(path: Path) -> Any:
    """Return the verified `onnx.ModelProto` at `path`, and what its metadata says.

    Raises:
        FileFormatError: it is truncated, was changed, or geoquant did not write it.
    """
    onnx = need("onnx", "onnx")
    try:
        proto = onnx.ModelProto.FromString(path.read_bytes())
    except OSError as error:
        raise FileFormatError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # protobuf's own class, which moves between its versions
        raise FileFormatError(f"{path} is not a whole ONNX file; export the model again") from error
    text = next((entry.value for entry in proto.metadata_props if entry.key == METADATA), None)
    if text is None:
        raise FileFormatError(f"{path} is not a whole ONNX file of geoquant's: its list of weights is missing")
    try:
        described = json.loads(text)
        stated = described.pop("sha256")
        version = int(described["version"])
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise FileFormatError(f"{path} has a damaged list of weights ({error}); export the model again") from error
    if version > VERSION:
        raise FileFormatError(f"{path} has version {version}, this geoquant reads up to {VERSION}; upgrade geoquant")
    if stated != _digest(proto, described):
        raise FileFormatError(
            f"{path} was changed after it was exported (its checksum does not match); export it again"
        )
    return proto, described


def contents(path: Path, name: str) -> Contents:
    """List what the file at `path` holds, after verifying it."""
    proto, described = read(path)
    sizes = {tensor.name: _bytes(tensor) for tensor in proto.graph.initializer}
    layers = tuple(
        StoredLayer(weight, grid, stored, sum(sizes.pop(tensor, 0) for tensor in tensors), reason)
        for weight, (grid, stored, reason, tensors) in described["layers"].items()
    )
    notes = (f"geoquant's own artifact takes {described['plan_bytes']:,} bytes", *described["notes"])
    return Contents(name, path, path.stat().st_size, layers, sum(sizes.values()), notes)


def _digest(proto: Any, described: Json) -> str:
    total = hashlib.sha256(canonical(described).encode())
    for node in proto.graph.node:
        total.update(node.SerializeToString(deterministic=True))
    for value in (*proto.graph.input, *proto.graph.output, *proto.opset_import):
        total.update(value.SerializeToString(deterministic=True))
    for tensor in proto.graph.initializer:
        total.update(f"{tensor.name}\0{tensor.data_type}\0{list(tensor.dims)}\0".encode())
        total.update(tensor.raw_data or tensor.SerializeToString(deterministic=True))
    return total.hexdigest()


def _bytes(tensor: Any) -> int:
    onnx = need("onnx", "onnx")
    name = onnx.TensorProto.DataType.Name(tensor.data_type)
    whole = 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    bits: int = {"INT2": 2, "UINT2": 2, "INT4": 4, "UINT4": 4}.get(name, whole)
    count: int = math.prod(tensor.dims)
    return math.ceil(count * bits / 8)
