"""In which weights is the network piecewise affine? Then that block of its Hessian *is* Gauss-Newton.

For outputs z(θ) and a loss of z the Hessian is G + Σ r_c ∇²z_c. Where z is piecewise affine in one block of
weights, the others held, the second term of that diagonal block is zero, so its trace is known exactly
from G alone (Botev et al., arXiv 1706.03662, section 4, for layers of ReLU nets). Whether it is so can be
read off autograd's graph: every operation above the block must be affine, piecewise affine, or a product of
which only one factor depends on it. Operations not listed here count as curved, so the answer errs on the
safe side only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction

from geoquant.errors import ModelError

# Affine or piecewise affine in all their inputs together.
_AFFINE_NAMES = """
    AccumulateGrad Add Sub Rsub Neg Sum Mean Clone Copy CopyBackwards ToCopy Alias AsStrided Contiguous Detach
    View UnsafeView Reshape ReshapeAlias Transpose T Mt Permute Expand Slice Select Narrow Index IndexSelect Gather
    Scatter ScatterAdd IndexAdd IndexPut Take Cat Stack Split SplitWithSizes Unbind Chunk Squeeze Unsqueeze Repeat Roll
    Flip Tril Triu Diagonal Diag MaskedFill MaskedSelect Where Unfold UnfoldBackward Im2Col Col2Im PixelShuffle
    PixelUnshuffle ConstantPadNd ReflectionPad1D ReflectionPad2D ReflectionPad3D ReplicationPad1D ReplicationPad2D
    ReplicationPad3D AvgPool2D AvgPool3D AdaptiveAvgPool2D AdaptiveAvgPool3D MkldnnAdaptiveAvgPool2D
    UpsampleNearest1D UpsampleNearest2D UpsampleNearest3D UpsampleLinear1D UpsampleBilinear2D UpsampleBicubic2D
    UpsampleTrilinear3D Embedding EmbeddingBag Cumsum Relu LeakyRelu Rrelu Hardtanh Hardsigmoid Threshold Abs Clamp
    ClampMin
    ClampMax Max Min Amax Amin Maximum Minimum Topk Sort Kthvalue Median MaxPool2DWithIndices MaxPool3DWithIndices
    AdaptiveMaxPool2D AdaptiveMaxPool3D FractionalMaxPool2D MkldnnMaxPool2D MkldnnMaxPool3D
"""
_AFFINE = frozenset(_AFFINE_NAMES.split())

# Affine in each factor alone: the places of the factors among the inputs.
_PRODUCTS = {
    "Mul": (0, 1),
    "Mm": (0, 1),
    "Bmm": (0, 1),
    "Mv": (0, 1),
    "Dot": (0, 1),
    "Addmm": (1, 2),
    "Addmv": (1, 2),
    "Addbmm": (1, 2),
    "Baddbmm": (1, 2),
    "Addcmul": (1, 2),
    "Linear": (0, 1),
    "Convolution": (0, 1),
    "NativeBatchNorm": (0, 1),
    "CudnnBatchNorm": (0, 1),
    "PreluKernel": (0, 1),
}


@dataclass(frozen=True)
class Structure:
    """What autograd's graph says of parameters, by their place in the given sequence.

    Attributes:
        affine: the outputs are piecewise affine in this parameter, the others held.
        uses: how many operations read this parameter.
        mixes_samples: a batch norm with batch statistics couples the samples of a batch.
        opaque: a function written in Python (`torch.autograd.Function`, reentrant checkpointing) is in the graph; it
            may read parameters that the graph does not show, so those without a visible use count as curved.
    """

    affine: tuple[bool, ...]
    uses: tuple[int, ...]
    mixes_samples: bool
    opaque: bool


def structure_of(outputs: Tensor, parameters: Sequence[Tensor]) -> Structure:
    """Read the graph of `outputs` for each of `parameters` (leaves: parameters, or inputs that require gradients).

    >>> import torch
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    >>> structure_of(net(torch.ones(1, 2)), list(net.parameters())).affine
    (False, False, False, False, True, True)
    """
    places = {id(parameter): place for place, parameter in enumerate(parameters)}
    if outputs.grad_fn is None:
        return Structure((True,) * len(places), (0,) * len(places), mixes_samples=False, opaque=False)
    order = _topological(outputs.grad_fn)
    depends: dict[Any, int] = {}
    curved = 0
    uses: Counter[int] = Counter()
    mixes = any(bool(getattr(node, "_saved_training", False)) for node in order)
    opaque = any(isinstance(node, BackwardCFunction) for node in order)
    for node in order:
        variable = getattr(node, "variable", None)
        own = 1 << places[id(variable)] if variable is not None and id(variable) in places else 0
        inputs = [0 if below is None else depends[below] for below, _ in node.next_functions]
        depends[node] = own
        for mask in inputs:
            depends[node] |= mask
        curved |= _curved_in(node, inputs)
        uses.update(
            places[id(below.variable)]
            for below, _ in node.next_functions
            if below is not None and id(getattr(below, "variable", None)) in places
        )
    return Structure(
        tuple(not curved >> place & 1 and not (opaque and uses[place] == 0) for place in range(len(places))),
        tuple(uses[place] for place in range(len(places))),
        mixes,
        opaque,
    )


def refuse_hidden(outputs: Tensor, parameters: Sequence[Tensor]) -> None:
    """Raise `ModelError` if one of `parameters` may be read where the graph does not show it."""
    structure = structure_of(outputs, parameters)
    hidden = [parameter for parameter, uses in zip(parameters, structure.uses, strict=True) if uses == 0]
    if structure.opaque and hidden:
        raise ModelError(
            f"a weight of shape {tuple(hidden[0].shape)} is not in autograd's graph, which holds a function written in "
            "Python that may hide it; for checkpointing pass use_reentrant=False, or leave the weight out"
        )


def _topological(root: Any) -> list[Any]:
    """List the nodes below `root`, each after everything it depends on."""
    order: list[Any] = []
    seen = {root}
    stack = [(root, iter(root.next_functions))]
    while stack:
        node, edges = stack[-1]
        below = next((edge for edge, _ in edges if edge is not None and edge not in seen), None)
        if below is None:
            order.append(node)
            stack.pop()
        else:
            seen.add(below)
            stack.append((below, iter(below.next_functions)))
    return order


def _curved_in(node: Any, inputs: list[int]) -> int:
    """Return the set (bits) of parameters in which this one operation may be curved."""
    kind = re.sub(r"Backward\d*$", "", node.name().rpartition("::")[2])
    everything = 0
    for mask in inputs:
        everything |= mask
    if kind in _AFFINE:
        return 0
    if kind == "Div":
        return inputs[1] if len(inputs) > 1 else 0
    if kind in _PRODUCTS and not getattr(node, "_saved_training", False):
        first, second = (inputs[place] if place < len(inputs) else 0 for place in _PRODUCTS[kind])
        return first & second
    return everything
