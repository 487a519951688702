"""Can a few large channels be spread over all of them?

The offline part of QuaRot (Ashkboos et al., arXiv:2404.00456). The residual stream of a Llama-like transformer is
turned by an orthogonal Q: what writes into it (embeddings, attention output, feed-forward output) gives x Q, what
reads it takes x Q; RMSNorms let Q pass once their scale is absorbed. Inside attention, values and the output
projection are turned within each head. Q is a Hadamard matrix behind random signs, so that outliers, of weights and of
activations, go apart into all channels. Rotations that would have to be computed at run time (before the down
projection, of queries and keys) are not done.

A head that shares its weight with the embedding cannot be turned: the head would need the final norm's scale, the
embedding not. `untie_` gives it a weight of its own, which the plan must know of. LayerNorm subtracts a mean and is
refused.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geoquant.transforms.absorb import absorb_norms_
from geoquant.transforms.carrying import LINEAR
from geoquant.transforms.groups import Group, find_groups
from geoquant.transforms.orthogonal import random_hadamard
from geoquant.transforms.protocol import TRANSFORMS, Applied, Skipped, TransformContext, TransformReport
from geoquant.transforms.recording import Flow, Step, record
from geoquant.transforms.residual import Stream, find_stream
from geoquant.transforms.scaling import is_layer, obstacles, rotate_inputs_, rotate_outputs_


class Hadamard:
    """Rotation of the residual stream, and of values within each head."""

    def __call__(self, model: nn.Module, context: TransformContext) -> TransformReport:
        """Rotate what can be rotated; norms are absorbed only on the way to that."""
        flow = record(model, context.batches[0], context.forward)
        applied, skipped = _rotate_streams_(model, flow, context.seed)
        turned, left = _rotate_heads_(model, flow, context.seed)
        return TransformReport("hadamard", (*applied, *turned), (*skipped, *left))


TRANSFORMS.register("hadamard", Hadamard())


def untie_(model: nn.Module) -> tuple[str, ...]:
    """Give every linear layer that shares an embedding's weight a copy of its own; return the names of the layers.

    What the model stores changes: profile and plan afterwards. Models of transformers forget their wish to be tied.

    >>> model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    >>> model[1].weight = model[0].weight
    >>> untie_(model), model[1].weight is model[0].weight
    (('1',), False)
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    untied = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and id(module.weight) in tables:
            own = module.weight
            module.weight = nn.Parameter(own.detach().clone(), requires_grad=own.requires_grad)
            untied.append(name)
    config = getattr(model, "config", None)
    if untied and getattr(config, "tie_word_embeddings", False):
        config.tie_word_embeddings = False  # type: ignore[union-attr]
    return tuple(untied)


def _rotate_streams_(model: nn.Module, flow: Flow, seed: int) -> tuple[list[Applied], list[Skipped]]:
    """Rotate every residual stream that begins with an embedding."""
    why = obstacles(model)
    starts = [step for step in flow.steps if isinstance(step.module, nn.Embedding)]
    applied: list[Applied] = []
    skipped: list[Skipped] = []
    done: set[str] = set()
    for start in starts:
        if start.name in done:
            continue
        stream = find_stream(flow, start, why)
        done |= set(stream.writers)
        if stream.obstacle or not stream.norms:
            skipped.append(Skipped(f"the residual stream from '{start.name}'", _told(stream)))
        else:
            applied.append(_rotate_stream_(model, flow, start, stream, seed))
    return applied, skipped or ([] if starts else [Skipped("the residual stream", "no embedding begins one")])


def _told(stream: Stream) -> str:
    reason = stream.obstacle or "no norm reads it"
    tied = "is tied to another" in reason
    return reason + ("; give the head its own with geoquant.transforms.untie_ before planning" if tied else "")


def _rotate_stream_(model: nn.Module, flow: Flow, start: Step, stream: Stream, seed: int) -> Applied:
    norms = {norm for norm, _ in stream.norms.values()}
    absorb_norms_(model, flow, norms.__contains__)
    rotation = random_hadamard(stream.width, seed)
    for writer in stream.writers.values():
        rotate_outputs_(writer, rotation)
    for reader in stream.readers.values():
        rotate_inputs_(reader, rotation)
    names = (*stream.writers, *stream.norms, *stream.readers)
    return Applied(start.name, tuple(dict.fromkeys(names[1:])), f"{stream.width} channels rotated, norms absorbed")


def _rotate_heads_(model: nn.Module, flow: Flow, seed: int) -> tuple[list[Applied], list[Skipped]]:
    """Rotate the values of attention within each head, and what reads them."""
    groups, _ = find_groups(model, flow, lambda module: is_layer(module) and not hasattr(module, "kernel_size"), LINEAR)
    applied, skipped = [], []
    for group in groups:
        if not group.carried.blocks:
            continue
        reason = _head_obstacle(group)
        if reason:
            skipped.append(Skipped(group.name, f"its values are not rotated: {reason}"))
            continue
        heads = group.carried.blocks[0]
        rotation = random_hadamard(heads.shape[1], seed + 1)
        rotate_outputs_(group.module, _on_blocks(rotation, heads, len(group.free)))
        for reader in group.readers:
            places = torch.arange(len(reader.columns)).view(-1, heads.shape[1])
            rotate_inputs_(reader.module, _on_blocks(rotation, places, len(reader.columns)))
        applied.append(Applied(group.name, group.targets, f"values rotated in heads of {heads.shape[1]} channels"))
    return applied, skipped


def _head_obstacle(group: Group) -> str:
    """Return why the heads cannot be rotated; empty where they can."""
    heads = group.carried.blocks[0]
    if any(not torch.equal(each, heads) for each in group.carried.blocks):
        return "two products split them in two ways"
    if len(heads.flatten().unique()) != heads.numel() or not bool(group.free[heads].all()):  # type: ignore[no-untyped-call]
        return group.note or "heads overlap"
    known = set(map(tuple, heads.tolist()))
    for reader in group.readers:
        size = heads.shape[1]
        rows = reader.columns.view(-1, size).tolist() if len(reader.columns) % size == 0 else [[]]
        if any(tuple(row) not in known for row in rows):
            return f"'{reader.name}' does not read whole heads"
    return ""


def _on_blocks(rotation: Tensor, blocks: Tensor, size: int) -> Tensor:
    """Return the identity (size, size) with `rotation` on each row of channels in `blocks`."""
    whole = torch.eye(size, dtype=rotation.dtype)
    for block in blocks:
        whole[block[:, None], block[None, :]] = rotation
    return whole
