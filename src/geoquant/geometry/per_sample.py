"""How long is each sample's own gradient, layer by layer, when only the batch's backward is run?

For a layer that multiplies its input by its weight, the gradient of one sample is a product of what the
layer saw and what came back to it. So one backward pass *to the layers' outputs* (no weight gradient at
all) and one small batched product per layer give ‖∇_W‖² of every sample (Goodfellow, arXiv 1510.01799;
for long sequences the Gram form of Li et al., arXiv 2110.05679). Layers known: Linear, Conv1d/2d/3d,
transposed convolutions, Embedding, and the Conv1D of GPT-2. A parameter used anywhere else is not covered,
and `Recorder.covered` says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

# Gradients of several samples are formed together only up to this many numbers at a time.
_CHUNK = 1 << 22


@dataclass(frozen=True, eq=False)
class Use:
    """One call of one layer: what it saw, and where its output's gradient can be read."""

    module: nn.Module
    seen: Tensor
    edge: GradientEdge
    size: int


@dataclass(eq=False)
class Recorder:
    """Calls of known layers during one forward pass, in order."""

    uses: list[Use] = field(default_factory=list)

    @property
    def width(self) -> int:
        """Numbers in all recorded outputs together."""
        return sum(use.size for use in self.uses)

    def of(self, parameter: nn.Parameter) -> list[int]:
        """Return the places in `uses` of the layers whose weight or bias is `parameter`."""
        return [place for place, use in enumerate(self.uses) if _role(use.module, parameter)]


def _role(module: nn.Module, parameter: nn.Parameter) -> str:
    return next((name for name, own in module.named_parameters(recurse=False) if own is parameter), "")


@contextmanager
def recording(model: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[Recorder]:
    """Record every call of a known layer that holds one of `parameters`."""
    recorder = Recorder()
    wanted = {id(parameter) for parameter in parameters}

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        seen = args[0] if args else kwargs["input"]
        if output.requires_grad:
            recorder.uses.append(Use(module, seen.detach(), get_gradient_edge(output), output.numel()))

    handles = [
        module.register_forward_hook(record, with_kwargs=True, prepend=True)
        for module in model.modules()
        if is_known(module) and any(id(own) in wanted for own in module.parameters(recurse=False))
    ]
    try:
        yield recorder
    finally:
        for handle in handles:
            handle.remove()


_Pair = tuple[Tensor, Tensor]
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def is_known(module: nn.Module) -> bool:
    """Say whether the gradient of `module` has a known product form; a changed `forward` makes it unknown.

    >>> is_known(nn.Conv2d(1, 1, 3)), is_known(nn.LayerNorm(3))
    (True, False)
    """
    if isinstance(module, nn.Embedding):
        plain = type(module).forward is nn.Embedding.forward
        return plain and module.max_norm is None and not module.scale_grad_by_freq and not module.sparse
    if _is_gpt2_conv1d(module):
        return True
    bases = (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED)
    return any(isinstance(module, base) and type(module).forward is base.forward for base in bases)


def _is_gpt2_conv1d(module: nn.Module) -> bool:
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def gradient_norms(uses: Sequence[Use], parameter: nn.Parameter, deltas: Sequence[Tensor], samples: int) -> Tensor:
    """Return ‖gradient of `parameter`‖² per direction and sample, over all the calls that use it.

    One call needs no gradient at all (`squared_norms`); several calls of a shared layer, or tied layers, have
    their gradients formed and added, one sample at a time.
    """
    if len(uses) == 1:
        return squared_norms(uses[0], parameter, deltas[0], samples)
    norms = deltas[0].new_zeros(deltas[0].shape[0], samples)
    for sample in range(samples):
        parts = [
            dense_gradient(use, parameter, *_one_sample(use.seen, delta, sample, samples))
            for use, delta in zip(uses, deltas, strict=True)
        ]
        total = torch.stack([part.flatten(1) for part in parts]).sum(0)
        norms[:, sample] = total.square().sum(1)
    return norms


def _one_sample(seen: Tensor, delta: Tensor, sample: int, samples: int) -> tuple[Tensor, Tensor]:
    rows, images = len(seen) // samples, delta.shape[1] // samples
    return (
        seen[sample * rows : (sample + 1) * rows],
        delta[:, sample * images : (sample + 1) * images],
    )


def dense_gradient(use: Use, parameter: nn.Parameter, seen: Tensor, delta: Tensor) -> Tensor:
    """Form one sample's gradient for each direction: (directions, ...), laid out as all uses of a weight agree on."""
    if _role(use.module, parameter) == "bias":
        return bias_gradient(use.module, delta, 1)
    if isinstance(use.module, nn.Embedding):
        rows = delta.flatten(1, -2)
        index = seen.flatten()
        if use.module.padding_idx is not None:
            rows = rows * (index != use.module.padding_idx).unsqueeze(-1)
        return rows.new_zeros(len(rows), *parameter.shape).index_add_(1, index, rows)
    left, right = factors(use.module, seen, delta, 1)
    product = (left.transpose(-1, -2) @ right)[:, 0]
    return product.transpose(-1, -2) if _is_gpt2_conv1d(use.module) else product


def squared_norms(use: Use, parameter: nn.Parameter, deltas: Tensor, samples: int) -> Tensor:
    """Return ‖gradient of `parameter`‖² for each direction and sample from one layer call.

    Args:
        use: the call.
        parameter: weight or bias of the layer.
        deltas: gradients at the layer's output, (directions, *output shape), sample-major.
        samples: number of samples in the batch.

    Returns:
        (directions, samples), in the type of `deltas`.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> x = torch.tensor([[3.0, 4.0]])
    >>> with recording(layer, [layer.weight]) as recorder:
    ...     y = layer(x)
    >>> squared_norms(recorder.uses[0], layer.weight, torch.ones(1, 1, 1), 1)
    tensor([[25.]])
    """
    module = use.module
    if _role(module, parameter) == "bias":
        return bias_gradient(module, deltas, samples).square().sum(-1)
    if isinstance(module, nn.Embedding):
        return _embedding_norms(module, use.seen, deltas, samples)
    left, right = factors(module, use.seen, deltas, samples)
    return _product_norms(left, right)


def bias_gradient(module: nn.Module, deltas: Tensor, samples: int) -> Tensor:
    """Return (directions, samples, channels): `deltas` summed over positions."""
    if isinstance(module, (*_CONVOLUTIONS, *_TRANSPOSED)):
        deltas = deltas.flatten(3).sum(-1) if deltas.dim() > 3 else deltas
    return deltas.reshape(deltas.shape[0], samples, -1, deltas.shape[-1]).sum(2)


def factors(module: nn.Module, seen: Tensor, deltas: Tensor, samples: int) -> _Pair:
    """Write each sample's weight gradient as leftᵀ·right over positions.

    Returns:
        left: (directions, samples, groups, positions, rows), right: (1 or directions, samples, groups,
        positions, columns). Rows and columns are the weight's in some order that norms do not see.
    """
    if isinstance(module, _CONVOLUTIONS):
        return _convolution_factors(module, seen, deltas, samples)
    if isinstance(module, _TRANSPOSED):
        return _transposed_factors(module, seen, deltas, samples)
    directions = deltas.shape[0]
    left = deltas.reshape(directions, samples, 1, -1, deltas.shape[-1])
    return left, seen.reshape(1, samples, 1, -1, seen.shape[-1])


def _convolution_factors(module: Any, seen: Tensor, deltas: Tensor, samples: int) -> _Pair:
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = F.pad(seen, module._reversed_padding_repeated_twice, mode=mode) if _pads(module) else seen
    right = patches(padded, module.kernel_size, module.stride, module.dilation, module.groups)
    return _grouped(deltas, module.groups, samples), _by_sample(right.unsqueeze(0), samples)


def _transposed_factors(module: Any, seen: Tensor, deltas: Tensor, samples: int) -> _Pair:
    # A transposed convolution is the adjoint of a convolution from its output to its input: the roles of the
    # input and of the gradient change places.
    directions, spatial = deltas.shape[0], seen.shape[2:]
    sides = [side for padding in reversed(module.padding) for side in (padding, padding)]
    padded = F.pad(deltas.flatten(0, 1), sides)
    taken = patches(padded, module.kernel_size, module.stride, module.dilation, module.groups, spatial)
    right = torch.unflatten(taken, 0, (directions, -1))
    return _grouped(seen.unsqueeze(0), module.groups, samples), _by_sample(right, samples)


def _pads(module: Any) -> bool:
    return any(module._reversed_padding_repeated_twice)


def _grouped(values: Tensor, groups: int, samples: int) -> Tensor:
    """Lay (directions, images, channels, *space) out as (directions, samples, groups, positions, channels)."""
    flat = values.flatten(3) if values.dim() > 3 else values.unsqueeze(-1)
    split = torch.unflatten(flat, 2, (groups, -1)).transpose(-1, -2)
    return _by_sample(split, samples)


def _by_sample(values: Tensor, samples: int) -> Tensor:
    """Join the positions of several images of one sample: (d, images, g, p, c) → (d, samples, g, p', c)."""
    if values.shape[1] == samples:
        return values
    return torch.unflatten(values, 1, (samples, -1)).transpose(2, 3).flatten(3, 4)


def patches(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
    outputs: Sequence[int] | None = None,
) -> Tensor:
    """Return what each output position of a convolution sees: (images, groups, positions, columns).

    Args:
        x: padded input, (images, channels, *space).
        kernel: kernel size per axis.
        stride: per axis.
        dilation: per axis.
        groups: of channels.
        outputs: positions per axis to keep, when not all.

    >>> patches(torch.arange(4.0).view(1, 1, 4), (2,), (1,), (1,)).squeeze()
    tensor([[0., 1.],
            [1., 2.],
            [2., 3.]])
    """
    axes = len(kernel)
    for axis in range(axes):
        span = dilation[axis] * (kernel[axis] - 1) + 1
        x = x.unfold(2 + axis, span, stride[axis])[..., :: dilation[axis]]
        if outputs is not None:
            x = x.narrow(2 + axis, 0, outputs[axis])
    images, channels = x.shape[:2]
    x = x.reshape(images, groups, channels // groups, *x.shape[2:]) if groups > 1 else x.unsqueeze(1)
    # Channels last inside a patch: with channels_last inputs the copy then moves whole runs of memory.
    order = [0, 1, *range(3, 3 + axes), *range(3 + axes, 3 + 2 * axes), 2]
    return x.permute(order).flatten(2 + axes).flatten(2, 1 + axes)


def _product_norms(left: Tensor, right: Tensor) -> Tensor:
    """Return ‖leftᵀ·right‖² over positions, summed over groups: (directions, samples)."""
    positions, rows, columns = left.shape[-2], left.shape[-1], right.shape[-1]
    if positions == 1:
        sizes = left.square().sum((-1, -2)) * right.square().sum((-1, -2))
        return sizes.sum(-1)
    if positions * (rows + columns) < rows * columns:
        gram = (left @ left.transpose(-1, -2)) * (right @ right.transpose(-1, -2))
        return gram.sum((-1, -2, -3))
    if left.shape[0] == right.shape[0]:
        return (left.transpose(-1, -2) @ right).square().sum((-1, -2, -3))
    return _shared_norms(*((left, right) if right.shape[0] == 1 else (right, left)))


def _shared_norms(many: Tensor, one: Tensor) -> Tensor:
    """Multiply all directions with the one factor they share as one matrix product per sample and group."""
    directions, samples, groups, positions, rows = many.shape
    wide = many.permute(1, 2, 0, 4, 3).reshape(samples, groups, directions * rows, positions)
    step = max(1, _CHUNK // (groups * directions * rows * one.shape[-1]))
    parts = [wide[at : at + step] @ one[0, at : at + step] for at in range(0, samples, step)]
    sizes = [torch.unflatten(part.square().sum(-1), -1, (directions, rows)).sum((1, -1)) for part in parts]
    return torch.cat(sizes).T


def _embedding_norms(module: nn.Embedding, seen: Tensor, deltas: Tensor, samples: int) -> Tensor:
    """Tokens that share a row add their gradients: a Gram matrix over positions masked by equality."""
    index = seen.reshape(samples, -1)
    rows = deltas.reshape(deltas.shape[0], samples, index.shape[1], -1)
    same = index.unsqueeze(-1) == index.unsqueeze(-2)
    if module.padding_idx is not None:
        same = same & (index != module.padding_idx).unsqueeze(-1)
    return ((rows @ rows.transpose(-1, -2)) * same).sum((-1, -2))


def owned_by_samples(outputs: Tensor, recorder: Recorder) -> list[bool]:
    """Check, for each recorded call, that a sample's gradient stays in that sample's rows.

    Layers may see the batch flattened, transposed or broadcast; then rows of their output are not samples.
    The middle sample alone is sent back: every other row must stay zero.
    """
    samples = outputs.shape[0]
    chosen = samples // 2
    direction = torch.zeros_like(outputs)
    direction[chosen] = torch.linspace(0.5, 1.0, direction[chosen].numel()).view_as(direction[chosen])
    deltas = pull_back(outputs, recorder, direction)
    return [_only_at(delta, samples, chosen) for delta in deltas]


def _only_at(delta: Tensor | None, samples: int, chosen: int) -> bool:
    if delta is None or samples == 1:
        return True
    if delta.shape[0] % samples:
        return False
    rows = delta.reshape(samples, -1).abs().amax(1)
    rows[chosen] = 0
    return not bool(rows.any())


def pull_back(outputs: Tensor, recorder: Recorder, direction: Tensor) -> list[Tensor | None]:
    """Return the gradient of ⟨direction, outputs⟩ at every recorded layer output; weights get none."""
    edges = [use.edge for use in recorder.uses]
    if not edges:
        return []
    return list(torch.autograd.grad(outputs, edges, direction, retain_graph=True, allow_unused=True))
