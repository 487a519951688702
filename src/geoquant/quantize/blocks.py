"""Which codes make each block of layers answer as the float block does?

Block reconstruction (BRECQ, Li et al., arXiv:2102.05426): block after block, in the order of execution, learn the codes
and scales of all its layers, and its norms and biases, so that on the inputs which the quantized network gives,
its output comes near to what the float network gives there. It sees how layers of a block make up for each other,
not how blocks do (`geoquant.quantize.network`). The error is plain squared error; the paper's weights by squared
gradients of the loss, and its two neighbours per weight, are left out. Batch norms between blocks are corrected anew.

A block is the smallest module made of others that holds a site and maps one tensor to one tensor; a layer that
belongs to none is a block of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from geoquant.grids import QuantizedMatrix
from geoquant.models import (
    Arrival,
    Forward,
    Site,
    evaluating,
    has_patches,
    predict,
    walk_in_lockstep,
)
from geoquant.models.moments import ChannelMoments, first_input
from geoquant.progress import task
from geoquant.quantize.correction import correct_norm_, is_stored_norm, record_float
from geoquant.quantize.learning import LearnedModel, learn_


@dataclass(frozen=True)
class BlockTuning:
    """Block reconstruction with its settings.

    Attributes:
        steps: of Adam per block.
        batch: samples per step, drawn from all calibration batches.
        codes: learning rate of the places of weights between levels, in gaps between levels.
        scales: learning rate of scales, relative.
        free: learning rate of norms and biases.
    """

    steps: int = 200
    batch: int = 64
    codes: float = 0.02
    scales: float = 1e-3
    free: float = 1e-3

    def __call__(
        self,
        reference: nn.Module,
        model: nn.Module,
        sites: Sequence[Site],
        matrices: Mapping[str, QuantizedMatrix],
        batches: Sequence[Any],
        forward: Forward | None = None,
        seed: int = 0,
    ) -> dict[str, QuantizedMatrix]:
        """Improve the quantized `model` in place; arguments as those of `NetworkTuning`."""
        blocks = find_blocks(reference, sites, batches[0], forward)
        between = [name for name, one in model.named_modules() if is_stored_norm(one) and not _covered(name, blocks)]
        record = record_float(reference, batches, [*blocks, *between], forward)
        pairs = {name: (reference.get_submodule(name), model.get_submodule(name)) for name in record.order}
        names = {module: name for name, pair in pairs.items() for module in pair}
        result, targets = dict(matrices), list[Tensor]()

        def act(station: nn.Module, arrivals: Sequence[Arrival]) -> None:
            name = names[station]
            original, own = pairs[name]
            if name in record.inputs:
                if station is own and record.calls[name] == len(arrivals):
                    _correct_anew_(own, original, record.inputs[name], arrivals)
            elif station is original:
                targets[:] = [_output(original, arrival) for arrival in arrivals]
            else:
                inner = [site for site in sites if site.parameter.startswith(f"{name}.")]
                block = _Block(original, own, name, inner, result)
                result.update(block.learn(self, [first_input(one) for one in arrivals], targets, seed, advance))

        tagged = [(place, batch) for place in (0, 1) for batch in batches]

        def call(both: nn.Module, batch: Any) -> Tensor:
            assert isinstance(both, nn.ModuleList)
            return predict(both[batch[0]], batch[1], forward)

        with task("reconstructing blocks", self.steps * len(blocks)) as advance:
            # A block that rounds its own input learns to do so from what it is given.
            walk_in_lockstep(nn.ModuleList([reference, model]), tagged, list(names), act, call, before_hooks=True)
        return result


class _Block:
    """One block of the quantized model beside its float original."""

    def __init__(
        self,
        original: nn.Module,
        block: nn.Module,
        name: str,
        sites: Sequence[Site],
        matrices: Mapping[str, QuantizedMatrix],
    ) -> None:
        self._block, self._prefix = block, f"{name}."
        own = [_inside(site, self._prefix) for site in sites]
        codes = {site.parameter.removeprefix(self._prefix): matrices[site.parameter] for site in sites}
        free = [each for each, tensor in block.named_parameters() if each not in codes and tensor.is_floating_point()]
        self._learned = LearnedModel(block, original, own, codes, free)

    def learn(
        self, tuning: BlockTuning, inputs: list[Tensor], targets: list[Tensor], seed: int, advance: Any
    ) -> dict[str, QuantizedMatrix]:
        """Fit the block to its targets; return its sites' codes under their full names."""
        entered, wanted = torch.cat(inputs), torch.cat(targets)
        power = wanted.square().mean().clamp(min=1e-12)
        generator = torch.Generator().manual_seed(seed)

        def loss(_: int) -> Tensor:
            chosen = torch.randint(len(entered), (tuning.batch,), generator=generator).to(entered.device)
            output = functional_call(self._block, self._learned.tensors(), (entered[chosen],))
            error: Tensor = (output - wanted[chosen]).square().mean() / power
            return error

        @torch.no_grad()
        def error() -> float:
            parts = zip(inputs, targets, strict=True)
            return sum(float((self._block(one) - target).double().square().sum()) for one, target in parts)

        with evaluating(self._block):
            rates = tuning.codes, tuning.scales, tuning.free
            finished = learn_(self._learned, loss, error, tuning.steps, rates, advance)
        return {self._prefix + name: codes for name, codes in finished.items()}


def _covered(name: str, blocks: Sequence[str]) -> bool:
    """Whether a module lies in one of the blocks."""
    return any(f"{name}.".startswith(f"{block}.") for block in blocks)


def _correct_anew_(norm: nn.Module, original: nn.Module, seen: ChannelMoments, arrivals: Sequence[Arrival]) -> None:
    """Correct a norm between blocks for what the reconstructed blocks before it now give."""
    with torch.no_grad():
        for name, buffer in norm.named_buffers():
            buffer.copy_(original.get_buffer(name))
    correct_norm_(norm, seen, arrivals)


def _inside(site: Site, prefix: str) -> Site:
    """Return the site as the block itself names it."""
    return Site(site.name, site.parameter.removeprefix(prefix), site.kind, site.shape, site.view)


def _output(block: nn.Module, arrival: Arrival) -> Tensor:
    output: Tensor = type(block).forward(block, *arrival.args, **arrival.kwargs)
    return output


def find_blocks(model: nn.Module, sites: Sequence[Site], batch: Any, forward: Forward | None = None) -> list[str]:
    """Return the names of the blocks of `model` in the order of execution (see the module's docstring).

    Sites with tied weights, and layers that a forward calls more than once, belong to no block.

    >>> from geoquant.models import find_sites
    >>> block = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    >>> model = nn.Sequential(nn.Linear(2, 2), block, nn.ReLU())
    >>> find_blocks(model, find_sites(model), torch.zeros(1, 2))
    ['0', '1']
    """
    calls: dict[str, int] = {}
    plain: dict[str, bool] = {}
    hooks = []
    for name, module in model.named_modules():

        def note(_: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
            calls[name] = calls.get(name, 0) + 1
            single = len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and isinstance(output, Tensor)
            plain[name] = single and args[0].dim() > 0 and output.dim() > 0 and len(args[0]) == len(output)

        hooks.append(module.register_forward_hook(note, with_kwargs=True))
    try:
        with evaluating(model), torch.no_grad():
            predict(model, batch, forward)
    finally:
        for hook in hooks:
            hook.remove()
    fit = {name for name, count in calls.items() if count == 1 and plain[name] and name}
    return _smallest(model, sites, fit, list(calls))


def _smallest(model: nn.Module, sites: Sequence[Site], fit: set[str], order: Sequence[str]) -> list[str]:
    """Return for each site its smallest fitting composite module, or its own layer; sorted by `order`."""
    tied = {owner for site in sites if site.aliases for owner in _owners(site.parameter)}
    chosen = set()
    for site in sites:
        if site.aliases:
            continue
        layer, *around = _owners(site.parameter)
        composite = [name for name in around if name in fit and name not in tied]
        if composite:
            chosen.add(composite[0])
        elif layer in fit and has_patches(model.get_submodule(layer)):
            chosen.add(layer)
    outer = {name for name in chosen if not any(other != name and name.startswith(f"{other}.") for other in chosen)}
    return [name for name in order if name in outer]


def _owners(parameter: str) -> list[str]:
    """Return the modules that hold a parameter, innermost first, the whole model left out.

    >>> _owners("layer1.0.conv1.weight")
    ['layer1.0.conv1', 'layer1.0', 'layer1']
    """
    parts = parameter.split(".")[:-1]
    return [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
