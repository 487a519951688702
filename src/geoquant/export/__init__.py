"""Artifacts on disk: geoquant's own, and those that engines load."""

from geoquant.export.compressed import CompressedTensors, compressed_tensors
from geoquant.export.gguf_format import Gguf, gguf, gguf_types
from geoquant.export.inspecting import contents_document, contents_text, inspect
from geoquant.export.onnx_format import Onnx, onnx
from geoquant.export.onnx_session import int8_overflows
from geoquant.export.packed import PLAN_FILE, WEIGHTS_FILE, Artifact, checksum, load, read_artifact, save
from geoquant.export.packed_format import Packed
from geoquant.export.protocol import EXPORTERS, Contents, Exporter, StoredLayer, export_model, need, recognize
from geoquant.export.timing import measure_latency
from geoquant.export.torchao_format import TorchAo, torchao, torchao_config

__all__ = [
    "EXPORTERS",
    "PLAN_FILE",
    "WEIGHTS_FILE",
    "Artifact",
    "CompressedTensors",
    "Contents",
    "Exporter",
    "Gguf",
    "Onnx",
    "Packed",
    "StoredLayer",
    "TorchAo",
    "checksum",
    "compressed_tensors",
    "contents_document",
    "contents_text",
    "export_model",
    "gguf",
    "gguf_types",
    "inspect",
    "int8_overflows",
    "load",
    "measure_latency",
    "need",
    "onnx",
    "read_artifact",
    "recognize",
    "save",
    "torchao",
    "torchao_config",
]
