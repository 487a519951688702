"""How long is each sample's own gradient, layer by layer, when only the batch's backward is run?

For a layer that multiplies its input by its weight, the gradient of one sample is a product of what the
layer saw and what came back to it. So one backward pass *to the layers' outputs* (no weight gradient at
all) and one small batched product per layer give ‖∇_W‖² of every sample (Goodfellow, arXiv 1510.01799;
for long sequences the Gram form of Li et al., arXiv 2110.05679). Layers known: Linear, Conv1d/2d/3d,
transposed convolutions, Embedding, and the Conv1D of GPT-2. A parameter that is used in any other way is
for the caller to notice (`geoquant.geometry.affine` counts uses).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from geoquant.geometry.factors import bias_gradient, factors, is_known, rows_per_sample, to_weight

# Gradients of several samples are formed together only up to this many numbers at a time.
_CHUNK = 1 << 22


@dataclass(frozen=True, eq=False)
class Use:
    """One call of one layer: what it saw, and where its output's gradient can be read."""

    module: nn.Module
    seen: Tensor
    edge: GradientEdge
    size: int
    version: int

    @property
    def intact(self) -> bool:
        """Whether the input is still what the layer saw: nothing has written into it since."""
        return self.seen._version == self.version

    def seen_by(self, chosen: slice, samples: int) -> Tensor:
        """Return the input rows of the chosen samples."""
        return torch.unflatten(self.seen, 0, (samples, -1))[chosen].flatten(0, 1)


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
            recorder.uses.append(Use(module, seen.detach(), get_gradient_edge(output), output.numel(), seen._version))

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


def gradient_norms(uses: Sequence[Use], parameter: nn.Parameter, deltas: Sequence[Tensor], samples: int) -> Tensor:
    """Return ‖gradient of `parameter`‖² per direction and sample, over all the calls that use it.

    One call needs no gradient at all (`squared_norms`); several calls of a shared layer, or tied layers, have
    their gradients formed and added, one sample at a time.
    """
    if len(uses) == 1:
        return squared_norms(uses[0], parameter, deltas[0], samples)
    norms = deltas[0].new_zeros(deltas[0].shape[0], samples)
    for chosen in sample_slices(parameter.numel() * len(norms), samples):
        total = summed_gradient(uses, parameter, deltas, samples, chosen)
        norms[:, chosen] = total.flatten(2).square().sum(-1)
    return norms


def sample_slices(numbers: int, samples: int) -> Iterator[slice]:
    """Yield slices of samples whose whole gradients, `numbers` each, fit together into a bounded memory."""
    step = max(1, _CHUNK // max(1, numbers))
    yield from (slice(at, min(at + step, samples)) for at in range(0, samples, step))


def summed_gradient(
    uses: Sequence[Use], parameter: nn.Parameter, deltas: Sequence[Tensor], samples: int, chosen: slice
) -> Tensor:
    """Form the gradients of the chosen samples, added over calls: (directions, chosen samples, *parameter shape)."""
    count = chosen.stop - chosen.start
    parts = [
        dense_gradient(use.module, parameter, use.seen_by(chosen, samples), _cut(delta, chosen, samples), count)
        for use, delta in zip(uses, deltas, strict=True)
    ]
    return torch.stack(parts).sum(0)


def _cut(deltas: Tensor, chosen: slice, samples: int) -> Tensor:
    return rows_per_sample(deltas, samples)[:, chosen].flatten(1, 2)


def dense_gradient(module: nn.Module, parameter: nn.Parameter, seen: Tensor, deltas: Tensor, samples: int) -> Tensor:
    """Form each sample's gradient from one call: (directions, samples, *parameter shape)."""
    if _role(module, parameter) == "bias":
        return bias_gradient(module, deltas, samples)
    if isinstance(module, nn.Embedding):
        return _embedding_gradient(module, seen, deltas, samples)
    left, right = factors(module, seen, deltas, samples)
    return to_weight(module, left.transpose(-1, -2) @ right)


def _embedding_gradient(module: nn.Embedding, seen: Tensor, deltas: Tensor, samples: int) -> Tensor:
    index = seen.reshape(samples, -1)
    rows = deltas.reshape(len(deltas), samples, index.shape[1], -1)
    rows = rows * _counted(module, index).unsqueeze(-1)
    total = rows.new_zeros(len(deltas), samples, module.num_embeddings, module.embedding_dim)
    places = index.view(1, *index.shape, 1).expand_as(rows)
    return total.scatter_add_(2, places, rows)


def _counted(module: nn.Embedding, index: Tensor) -> Tensor:
    """Rows of the padding token get no gradient."""
    return index != (-1 if module.padding_idx is None else module.padding_idx)


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
    same = (index.unsqueeze(-1) == index.unsqueeze(-2)) & _counted(module, index).unsqueeze(-1)
    return ((rows @ rows.transpose(-1, -2)) * same).sum((-1, -2))


def owned_by_samples(outputs: Tensor, recorder: Recorder) -> list[bool]:
    """Check, for each recorded call, that a sample's gradient stays in that sample's rows.

    Layers may see the batch flattened, transposed or broadcast; then rows of their output are not samples.
    The middle sample alone is sent back: every other row must stay zero. Inputs written over since do not count.
    """
    samples = outputs.shape[0]
    chosen = samples // 2
    direction = torch.zeros_like(outputs)
    direction[chosen] = torch.linspace(0.5, 1.0, direction[chosen].numel()).view_as(direction[chosen])
    deltas = pull_back(outputs, recorder, direction)
    return [use.intact and _only_at(delta, samples, chosen) for use, delta in zip(recorder.uses, deltas, strict=True)]


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
