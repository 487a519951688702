"""How do codes take the place of a float weight in an ONNX graph?

In the standard form `DequantizeLinear` stands before the layer: codes lie in the shape of the weight where one scale
serves a channel or everything, and as the matrix (channels, fan_in) where groups share one. A linear layer that
`MatMulNBits` multiplies (com.microsoft, ONNX Runtime) takes codes packed in blocks along fan_in. A batch norm that
alone reads a convolution with a scale per channel goes into those scales, exactly, so that integer kernels apply.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geoquant.export.onnx_types import NBITS, PLAIN, Choice
from geoquant.export.protocol import need
from geoquant.grids import PerTensor, QuantizedMatrix
from geoquant.models import views

_Array = NDArray[Any]
_DOMAIN = "com.microsoft"


def pack_weights_(
    model: Any, choices: tuple[Choice, ...], matrices: dict[str, QuantizedMatrix], accuracy_level: int
) -> dict[str, list[str]]:
    """Replace the float weight of each choice in the `onnx_ir` model; return the names of its tensors by weight.

    The graph is simplified too, while the weights are set aside so that none is folded into something else. A linear
    layer that turns out to be multiplied otherwise than by `Gemm` or `MatMul` keeps its standard form.
    """
    values = {
        choice.site.parameter: [
            _set_aside_(model.graph, name)
            for name in (choice.site.parameter, *choice.site.aliases)
            if name in model.graph.initializers
        ]
        for choice in choices
    }
    need("onnxscript.optimizer", "onnx").optimize(model)
    passes = need("onnx_ir.passes.common", "onnx")
    passes.DeduplicateInitializersPass()(model)  # equal steps of activations, so that they are taken once
    passes.CommonSubexpressionEliminationPass()(model)
    for value in itertools.chain.from_iterable(values.values()):
        model.graph.inputs.remove(value)
    return {
        choice.site.parameter: _Writer(
            model, choice, matrices[choice.site.parameter], values[choice.site.parameter], accuracy_level
        ).write_()
        for choice in choices
    }


def _set_aside_(graph: Any, name: str) -> Any:
    """Make the initializer an input of the graph, about which the simplification knows nothing."""
    value = graph.initializers.pop(name)
    value.const_value = None
    graph.inputs.append(value)
    return value


class _Writer:
    """Puts one weight into the graph."""

    def __init__(
        self, model: Any, choice: Choice, matrix: QuantizedMatrix, values: list[Any], accuracy_level: int
    ) -> None:
        self._ir = need("onnx_ir", "onnx")
        self._model, self._graph, self._choice, self._matrix = model, model.graph, choice, matrix
        self._name, self._values, self._accuracy_level = choice.site.parameter, values, accuracy_level
        self._tensors: list[str] = []

    def write_(self) -> list[str]:
        scales = self._matrix.scales.scale.detach().cpu()
        if self._choice.form == PLAIN:
            self._plain_()
        elif self._choice.form == NBITS:
            self._nbits_(scales)
        else:
            self._qdq_(scales)
        return self._tensors

    def _add(self, suffix: str, array: _Array | Tensor, type: str) -> Any:
        """Register an initializer of an ONNX type; `array` holds its numbers, or its bit patterns for floats."""
        ir = self._ir
        dtype = ir.DataType["FLOAT" if type == "float32" else type.upper()]
        array = array.cpu().numpy() if isinstance(array, Tensor) else array
        name = f"{self._name}.{suffix}"
        kind = dtype.numpy()
        array = array.view(kind) if type.startswith(("float8", "bfloat")) else array.astype(kind)
        tensor = ir.tensor(np.ascontiguousarray(array), dtype=dtype, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(dtype), const_value=tensor)
        self._graph.register_initializer(value)
        self._tensors.append(name)
        return value

    def _insert(self, op: str, inputs: list[Any], before: Any, domain: str = "", **attributes: Any) -> Any:
        node = self._ir.node(op, inputs, attributes, domain=domain)
        self._graph.insert_before(before, node)
        return node.outputs[0]

    def _first_use(self) -> Any:
        """Return the first node of the graph that reads the weight, before which its own nodes go."""
        readers = {id(use.node) for value in self._values for use in value.uses()}
        return next((node for node in self._graph if id(node) in readers), None)

    def _replace_(self, value: Any) -> None:
        for old in self._values:
            self._ir.convenience.replace_all_uses_with(old, value)

    def _plain_(self) -> None:
        first = self._first_use()
        weight = self._choice.site.restore(self._matrix.dequantize())
        type = self._choice.type.name
        if type == "bfloat16":
            stored = self._add("values", weight.to(torch.bfloat16).view(torch.int16), type)
        else:
            stored = self._add("values", weight, type)
        if first is not None:
            cast = stored if type == "float32" else self._insert("Cast", [stored], first, to=self._ir.DataType.FLOAT)
            self._replace_(cast)

    def _levels(self) -> Tensor:
        """Return what the file stores for each weight: whole numbers, or bit patterns of float8; (channels, fan_in)."""
        matrix, name = self._matrix, self._choice.type.name
        levels = matrix.grid.format.decode(matrix.codes)
        if name.startswith("float8"):
            kind = torch.float8_e4m3fn if "e4m3" in name else torch.float8_e5m2
            return levels.to(kind).view(torch.uint8)
        return levels.to(torch.int32)

    def _qdq_(self, scales: Tensor) -> None:
        site, zero = self._choice.site, self._matrix.scales.zero
        levels = self._levels() + self._choice.shift
        if self._choice.shift:
            zero = (torch.zeros(scales.shape, dtype=torch.int32) if zero is None else zero) + self._choice.shift
        turned, whole = self._is_turned(), isinstance(self._choice.grid.granularity, PerTensor)
        axis = None if self._choice.block else _channel_axis(site.view)
        attributes: dict[str, Any] = {}
        if self._choice.block:
            attributes = {"axis": 1, "block_size": self._choice.block}
        elif whole:
            scales, zero = scales.reshape(()), None if zero is None else zero.reshape(())
        else:
            scales, zero = scales.reshape(-1), None if zero is None else zero.reshape(-1)
            attributes = {"axis": axis or 0}
        in_shape = whole or axis is not None
        if attributes.keys() == {"axis"} and in_shape:
            scales = self._absorb_norm_(scales)
        codes = site.restore(levels) if in_shape else levels
        if turned:
            codes, scales, zero = _turned(codes), _turned(scales), None if zero is None else _turned(zero)
            attributes |= {"axis": 1 - attributes["axis"]} if attributes else {}
        self._dequantize_(codes, scales, zero, attributes, turned, in_shape)

    def _dequantize_(
        self, codes: Tensor, scales: Tensor, zero: Tensor | None, attributes: dict[str, Any], turned: bool, whole: bool
    ) -> None:
        """Put `DequantizeLinear` in place of the weight (`whole`), its matrix, or its transpose (`turned`)."""
        first, type = self._first_use(), self._choice.type.name
        parts = [self._add("codes", codes, type), self._add("scales", scales, "float32")]
        if zero is not None:
            parts.append(self._add("zeros", zero, type))
        if first is None:
            return
        weight = self._insert("DequantizeLinear", parts, first, **attributes)
        if not turned:
            self._replace_(weight if whole else self._restored(weight, first))
            return
        for use in [use for value in self._values for use in value.uses()]:
            self._ir.convenience.replace_all_uses_with(use.node.outputs[0], weight)
            self._graph.remove(use.node, safe=True)

    def _is_turned(self) -> bool:
        """Whether the graph only reads the transpose of a linear layer's weight, which then is what is stored."""
        uses = [use for value in self._values for use in value.uses()]
        linear = self._choice.site.view == views.ROWS and len(self._choice.site.shape) == 2
        return linear and bool(uses) and all(use.node.op_type == "Transpose" for use in uses)

    def _restored(self, matrix: Any, before: Any) -> Any:
        """Turn a matrix (channels, fan_in) back into the weight, as `geoquant.models.views.from_matrix` does."""
        site = self._choice.site
        if site.view in (views.ROWS, views.STACKED):
            return self._reshape(matrix, site.shape, before)
        groups = int(site.view.partition(":")[2] or 1)
        split = (groups, site.shape[1], site.shape[0] // groups, *site.shape[2:])
        axes = [0, 2, 1, *range(3, len(split))]
        turned = self._insert("Transpose", [self._reshape(matrix, split, before)], before, perm=axes)
        return self._reshape(turned, site.shape, before)

    def _reshape(self, value: Any, shape: tuple[int, ...], before: Any) -> Any:
        if tuple(shape) == self._choice.site.matrix_shape:
            return value
        ir = self._ir
        attribute = ir.tensor(np.array(shape, np.int64))
        constant = self._insert("Constant", [], before, value=attribute)
        return self._insert("Reshape", [value, constant], before)

    def _absorb_norm_(self, scales: Tensor) -> Tensor:
        """Fold a batch norm that alone reads this convolution into its scales and bias."""
        uses = [use for value in self._values for use in value.uses()]
        if len(uses) != 1 or uses[0].node.op_type != "Conv" or uses[0].idx != 1:
            return scales
        conv = uses[0].node
        readers = list(conv.outputs[0].uses())
        if len(readers) != 1 or readers[0].node.op_type != "BatchNormalization" or readers[0].idx != 0:
            return scales
        norm = readers[0].node
        constants = [value.const_value for value in norm.inputs[1:5]]
        bias = conv.inputs[2] if len(conv.inputs) > 2 else None
        old = None if bias is None else bias.const_value
        if any(each is None for each in constants) or (bias is not None and old is None):
            return scales
        gamma, beta, mean, variance = (each.numpy().astype(np.float64) for each in constants)
        factor = gamma / np.sqrt(variance + norm.attributes["epsilon"].value)
        shift = beta + ((0.0 if old is None else old.numpy().astype(np.float64)) - mean) * factor
        self._give_bias_(conv, shift.astype(np.float32))
        self._ir.convenience.replace_all_uses_with(norm.outputs[0], conv.outputs[0], replace_graph_outputs=True)
        self._graph.remove(norm, safe=True)
        return (scales.double() * torch.from_numpy(factor)).float()

    def _give_bias_(self, conv: Any, bias: _Array) -> None:
        ir, name = self._ir, f"{self._name}.norm_bias"
        value = ir.Value(
            name=name,
            shape=ir.Shape(bias.shape),
            type=ir.TensorType(ir.DataType.FLOAT),
            const_value=ir.tensor(bias, name=name),
        )
        self._graph.register_initializer(value)
        conv.resize_inputs(3)
        conv.replace_input_with(2, value)

    def _nbits_(self, scales: Tensor) -> None:
        products = self._products()
        if products is None:
            self._qdq_(scales)
            return
        parts = self._blocks(scales)
        for node, x, bias, dead in products:
            channels, fan_in = self._choice.site.matrix_shape
            attributes = {
                "K": fan_in,
                "N": channels,
                "bits": self._choice.type.bits,
                "block_size": self._choice.block,
                "accuracy_level": self._accuracy_level,
            }
            inputs = [x, *parts] if bias is None else [x, *parts, *[None] * (4 - len(parts)), bias]
            product = self._insert("MatMulNBits", inputs, node, _DOMAIN, **attributes)
            product.shape, product.type = node.outputs[0].shape, node.outputs[0].type
            self._ir.convenience.replace_all_uses_with(node.outputs[0], product, replace_graph_outputs=True)
            self._graph.remove([node, *dead], safe=True)
        self._model.opset_imports[_DOMAIN] = 1

    def _products(self) -> list[tuple[Any, Any, Any, list[Any]]] | None:
        """List (node, input, bias, nodes that go with it) of every product with this weight; None where one is odd."""
        turned = self._choice.site.view == views.ROWS
        found: list[tuple[Any, Any, Any, list[Any]]] = []
        for value in self._values:
            for use in value.uses():
                node = use.node
                if node.op_type == "Gemm" and use.idx == 1 and _is_plain_gemm(node, turned):
                    found.append((node, node.inputs[0], node.inputs[2] if len(node.inputs) > 2 else None, []))
                elif node.op_type == "MatMul" and use.idx == 1 and not turned:
                    found.append((node, node.inputs[0], None, []))
                elif node.op_type == "Transpose" and turned and _all_matmul(node):
                    readers = [reader.node for reader in node.outputs[0].uses()]
                    found += [(each, each.inputs[0], None, [node] if each is readers[-1] else []) for each in readers]
                else:
                    return None
        return found

    def _blocks(self, scales: Tensor) -> list[Any]:
        """Store codes (channels, blocks, bytes), scales (channels · blocks) and zero points (channels · bytes)."""
        bits, size = self._choice.type.bits, self._choice.block
        channels, fan_in = self._choice.site.matrix_shape
        blocks, middle = -(-fan_in // size), 0 if self._matrix.scales.zero is not None else 1 << bits - 1
        codes = np.full((channels, blocks * size), middle, np.uint8)
        codes[:, :fan_in] = (self._levels() + middle).to(torch.uint8).cpu().numpy()
        spread = scales.expand(channels, -1) if scales.shape[1] > 1 else scales.expand(channels, blocks)
        parts = [
            self._add("codes", _pack(codes, bits).reshape(channels, blocks, -1), "uint8"),
            self._add("scales", spread.reshape(-1), "float32"),
        ]
        zero = self._matrix.scales.zero
        if zero is not None:
            every = zero.cpu().expand(channels, -1) if zero.shape[1] > 1 else zero.cpu().expand(channels, blocks)
            parts.append(self._add("zeros", _pack(every.to(torch.uint8).numpy(), bits).reshape(-1), "uint8"))
        return parts


def _pack(codes: _Array, bits: int) -> _Array:
    """Put the codes of each row into bytes, the first in the low bits; rows are filled up with zeros.

    >>> _pack(np.array([[1, 2, 3]], np.uint8), 4).tolist()
    [[33, 3]]
    """
    each = 8 // bits
    rows = np.pad(codes, ((0, 0), (0, -codes.shape[1] % each)))
    packed = np.zeros((len(rows), rows.shape[1] // each), np.uint8)
    for place in range(each):
        packed |= rows[:, place::each] << (bits * place)
    return packed


def _turned(tensor: Tensor) -> Tensor:
    return tensor.T if tensor.dim() == 2 else tensor


def _channel_axis(view: str) -> int | None:
    """Return which axis of the weight counts channels; None where no single one does."""
    if view == views.ROWS:
        return 0
    return 1 if view in (views.COLUMNS, views.transposed(1)) else None


def _is_plain_gemm(node: Any, turned: bool) -> bool:
    given = {name: attribute.value for name, attribute in node.attributes.items()}
    wanted = bool(given.get("transB", 0) == int(turned) and given.get("transA", 0) == 0)
    return wanted and bool(given.get("alpha", 1.0) == 1.0 and given.get("beta", 1.0) == 1.0)


def _all_matmul(node: Any) -> bool:
    uses = list(node.outputs[0].uses())
    return bool(uses) and all(use.node.op_type == "MatMul" and use.idx == 1 for use in uses)
