"""How does a quantized torch model become an ONNX graph, before its weights are packed?

The model's forward is traced by torch's exporter. Activations on a static grid of whole numbers become pairs of
`QuantizeLinear` and `DequantizeLinear`, which ONNX Runtime fuses with what is around them into integer kernels; grids
narrower than the type are clipped first. All other activation grids (dynamic ones, small floats) are traced as the
arithmetic that they are: the same numbers, at the speed of float32.
"""

from __future__ import annotations

import copy
import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from geoquant.errors import ExportError, GeoquantError
from geoquant.export.protocol import need
from geoquant.grids import ActivationGrid, ActivationQuantizer
from geoquant.models import inference, inputs_of, predict
from geoquant.plan import Plan
from geoquant.quantize import quantizers_of

_PREFIX = "model."
_INTEGERS = {
    (True, 8): (torch.uint8, 18),
    (False, 8): (torch.int8, 18),
    (True, 16): (torch.uint16, 21),
    (False, 16): (torch.int16, 21),
}
_IMAGE_SIZES = (32, 28, 224, 8)
_TOKENS = 8


class _Logits(nn.Module):
    """Maps tensors, in the order of `names`, to the logits that the model gives for a batch of them."""

    def __init__(self, model: nn.Module, names: Sequence[str] | None) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: Tensor) -> Tensor:
        if self.names is not None:
            return predict(self.model, dict(zip(self.names, tensors, strict=True)))
        return predict(self.model, tensors[0] if len(tensors) == 1 else (tensors, None))


def trace(model: nn.Module, example: Any, opset: int, free: bool) -> Any:
    """Return the `onnx_ir.Model` of `model`, initializers under their state-dict names, weights still in float32.

    Args:
        model: quantized; it is not changed.
        example: a batch; its values do not matter.
        opset: of the graph.
        free: whether all axes of the inputs may have other lengths; otherwise the first, and that of tokens.

    Raises:
        ExportError: torch's exporter cannot trace the model.
    """
    need("onnxscript", "onnx")
    inputs = inputs_of(example)
    names = list(inputs) if isinstance(inputs, Mapping) else None
    tensors = list(inputs.values()) if isinstance(inputs, Mapping) else inputs
    arguments = names if names is not None else list(inspect.signature(model.forward).parameters)
    tensors = [_of_two(each) for each in (tensors if isinstance(tensors, list | tuple) else (tensors,))]
    if not all(isinstance(each, Tensor) for each in tensors):
        raise ExportError("only tensors can be inputs of an ONNX file; give an example batch of tensors")
    work = _Logits(copy.deepcopy(model), names).eval()
    for quantizer in quantizers_of(work):
        _emit_(quantizer, opset)
    shapes = tuple(dict.fromkeys(_axes(each, free), torch.export.Dim.AUTO) for each in tensors)
    with inference(work), _quiet():
        try:
            # Versions after the exporter's own only add types, so the number is raised afterwards.
            program = torch.onnx.export(
                work,
                tuple(tensors),
                dynamo=True,
                optimize=False,
                opset_version=18,
                dynamic_shapes=(shapes,),
                verbose=False,
            )
        except GeoquantError:
            raise
        except Exception as error:  # whatever the model's code or the exporter raises
            reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
            raise ExportError(
                f"torch cannot trace this model ({type(error).__name__}: {reason[:200]}); an ONNX file needs a forward "
                "without branches on data"
            ) from error
    assert program is not None
    return _named(program.model, arguments, opset)


def example_for(model: nn.Module, plan: Plan) -> tuple[Any, bool]:
    """Return an example batch made up from the first layer that runs, and True: its lengths mean nothing.

    Raises:
        ExportError: no made-up batch fits.
    """
    site = plan.inventory.sites[0]
    layer = model.get_submodule(site.parameter.rpartition(".")[0])
    if site.kind == "embedding":
        tries = [torch.zeros(2, _TOKENS, dtype=torch.long)]
    elif isinstance(layer, nn.Linear):
        tries = [torch.zeros(2, layer.in_features), torch.zeros(2, _TOKENS, layer.in_features)]
    elif isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        axes = len(layer.kernel_size)
        tries = [torch.zeros(2, layer.in_channels, *(size,) * axes) for size in _IMAGE_SIZES]
    else:
        tries = []
    for each in tries:
        try:
            with inference(model):
                predict(model, each)
        except Exception:  # a batch of another form comes next
            continue
        return each, True
    raise ExportError(
        "an example of the model's input cannot be made up from its first layer; give one: example=a batch "
        "(on the command line: --data)"
    )


def _axes(tensor: Tensor, free: bool) -> range:
    return range(tensor.dim() if free else min(tensor.dim(), 1 if tensor.is_floating_point() else 2))


def _of_two(tensor: Any) -> Any:
    """Return two samples: torch takes an axis of length one for a constant."""
    if not isinstance(tensor, Tensor) or tensor.dim() == 0:
        return tensor
    return tensor[:1].expand(2, *tensor.shape[1:]).contiguous()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporter says of packages that nobody asked for off the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _emit_(quantizer: ActivationQuantizer, opset: int) -> None:
    """Let `quantizer` leave `QuantizeLinear` and `DequantizeLinear` in a trace, where its grid allows."""
    levels = quantizer.grid.format.levels
    found = integer_type(quantizer.grid)
    if quantizer.grid.dynamic or quantizer.scale.scale == 0 or found is None or found[1] > opset:
        return
    assert levels is not None
    dtype, limits = found[0], torch.iinfo(found[0])
    scale, zero = torch.tensor(quantizer.scale.scale), torch.tensor(quantizer.scale.zero).to(dtype)
    low, high = (int(levels[place]) for place in (0, -1))
    ends = tuple((end - quantizer.scale.zero) * quantizer.scale.scale for end in (low, high))
    narrow = (low, high) != (limits.min, limits.max)

    symbolic = torch.onnx.ops.symbolic

    def one(values: Tensor) -> Tensor:
        if narrow:
            values = values.clamp(*ends)
        codes = symbolic("QuantizeLinear", (values, scale, zero), dtype=dtype, shape=values.shape, version=21)
        return symbolic("DequantizeLinear", (codes, scale, zero), dtype=torch.float32, shape=values.shape, version=21)

    def forward(*values: Tensor) -> Any:
        rounded = tuple(one(each) if each.is_floating_point() else each for each in values)
        return rounded[0] if len(rounded) == 1 else rounded

    quantizer.forward = forward  # type: ignore[method-assign]


def integer_type(grid: ActivationGrid) -> tuple[torch.dtype, int] | None:
    """Return the type that holds the levels of an activation grid, and its least opset; None where none does.

    >>> integer_type(ActivationGrid.parse("int4:affine"))
    (torch.uint8, 18)
    """
    levels = grid.format.levels
    if levels is None or not bool((levels == levels.round()).all()):
        return None
    fitting = (
        found
        for (unsigned, _), found in _INTEGERS.items()
        if unsigned == grid.format.has_zero_point
        and torch.iinfo(found[0]).min <= int(levels[0])
        and int(levels[-1]) <= torch.iinfo(found[0]).max
    )
    return next(fitting, None)


def _named(model: Any, arguments: Sequence[str], opset: int) -> Any:
    """Give inputs, output and initializers the names that the torch model has for them, and the file its opset."""
    for value, name in zip(model.graph.inputs, arguments, strict=False):
        value.name = name
    model.graph.outputs[0].name = "logits"
    for name in list(model.graph.initializers):
        if name.startswith(_PREFIX):
            value = model.graph.initializers.pop(name)
            value.name = name.removeprefix(_PREFIX)
            model.graph.register_initializer(value)
    model.opset_imports[""] = opset
    return model
