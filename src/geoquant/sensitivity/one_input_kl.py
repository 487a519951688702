"""What does rounding what enters one layer, or one operation, do to the predictions? Damage as KL divergence in nats.

The counterpart of `one_layer_kl` for activations: each (activation site, grid) is tried in turn on the float model,
everything after it is run again, and KL(float ‖ changed) is averaged over the calibration set. Static scales are those
that the grid's range method finds in the float model. It does not see how several rounded activations, or weights,
add up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from geoquant.errors import PlanError
from geoquant.evaluation import WeightedMean, kl_per_sample
from geoquant.geometry import fit_scale
from geoquant.geometry.ranges import RangeTally
from geoquant.grids import NOT_SEEN, ActivationGrid, ActivationQuantizer
from geoquant.models import (
    Forward,
    Inventory,
    Replay,
    batch_size,
    find_operations,
    find_sites,
    inference,
    predict,
    prediction_mask,
    select,
)
from geoquant.models.entering import callers, refusal, rounded_entering
from geoquant.progress import task
from geoquant.sensitivity.protocol import DamageTable

PREDICTOR = "one_input_kl"
LAYERS = "re:[^:]*"
"""The inputs of all layers; operands of operations have a colon in their names."""


@dataclass(frozen=True)
class ActivationTable:
    """What is known of activations: the damage of each activation site at each grid, and how much enters there.

    Attributes:
        damages: rows are activation sites, columns canonical names of activation grids; in nats per prediction.
        elements: numbers that enter each site for one sample, rounded up where samples differ.
    """

    damages: DamageTable
    elements: tuple[int, ...]

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the activation sites."""
        return self.damages.sites

    @property
    def grids(self) -> tuple[str, ...]:
        """Names of the grids."""
        return self.damages.grids


def find_activations(model: nn.Module, inventory: Inventory, patterns: Sequence[str] = (LAYERS,)) -> tuple[str, ...]:
    """Return the activation sites that `patterns` name: inputs of layers in order, then operands of operations.

    Layers whose input takes no grid are passed over.

    Raises:
        LayerNameError: a name or pattern matches nothing.
        PlanError: nothing is left.

    >>> from geoquant.models import take_inventory
    >>> model = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 2))
    >>> find_activations(model, take_inventory(model))
    ('1',)
    """
    refused = {site.name for site in inventory.sites if refusal(site, inventory)}
    names = [*inventory.names, *find_operations(model)]
    chosen = set(select(names, patterns)) - refused
    if not chosen:
        raise PlanError(f"{', '.join(patterns)} names no input that can be quantized; leave activations out")
    return tuple(name for name in names if name in chosen)


def activation_cost(
    model: nn.Module, names: Sequence[str], grids: int, batch: Any, forward: Forward | None = None
) -> float:
    """Say, before starting, what `measure_activations` will cost in forward-equivalents."""
    where = _callers(model, names)
    with inference(model), Replay(model, batch, forward, _modules(where)) as replay:
        return 2 + grids * sum(replay.fraction_from(*where[name]) for name in names)


def measure_activations(
    model: nn.Module,
    names: Sequence[str],
    grids: Sequence[ActivationGrid],
    batches: Sequence[Any],
    forward: Forward | None = None,
) -> ActivationTable:
    """Round what enters each of `names` at each of `grids` alone; the model is left as it was.

    Args:
        model: the float model.
        names: see `find_activations`.
        grids: static and dynamic ones may be mixed.
        batches: calibration batches.
        forward: how to call the model, where the usual ways do not fit.

    Raises:
        DataError: what enters is not finite.
        PlanError: no batch reaches one of the names.
    """
    sites = find_sites(model)
    seen, elements = _look(model, names, batches, forward)
    kinds = {site.name: site.kind for site in sites}
    quantizers = {name: tuple(_fitted(grid, seen[name], name, kinds.get(name, "")) for grid in grids) for name in names}
    where = _callers(model, names)
    means = {name: [WeightedMean() for _ in grids] for name in names}
    shares = []
    with inference(model), task("one-input KL", len(batches) * len(names)) as advance:
        for batch in batches:
            with Replay(model, batch, forward, _modules(where)) as replay:
                mask = prediction_mask(batch, replay.reference)
                shares.append(sum(replay.fraction_from(*where[name]) for name in names))
                for name in names:
                    for quantizer, mean in zip(quantizers[name], means[name], strict=True):
                        with rounded_entering(model, sites, {name: quantizer}):
                            mean.add(*kl_per_sample(replay.reference, replay.run_from(*where[name]), mask))
                    advance()
    cost = 2 + len(grids) * float(np.mean(shares))
    return ActivationTable(_table(names, grids, means, cost), elements)


def _table(
    names: Sequence[str], grids: Sequence[ActivationGrid], means: Mapping[str, list[WeightedMean]], cost: float
) -> DamageTable:
    results = [[mean.result() for mean in means[name]] for name in names]
    return DamageTable(
        PREDICTOR,
        "nats per prediction",
        tuple(names),
        tuple(str(grid) for grid in grids),
        tuple(tuple(each.value for each in row) for row in results),
        tuple(tuple(each.stderr for each in row) for row in results),
        cost,
        results[0][0].samples,
    )


def _look(
    model: nn.Module, names: Sequence[str], batches: Sequence[Any], forward: Forward | None
) -> tuple[dict[str, RangeTally], tuple[int, ...]]:
    """Run the float model once: the range of what enters each site, and how many numbers a sample brings."""
    tallies, sites = {name: RangeTally() for name in names}, find_sites(model)
    samples = sum(batch_size(batch) for batch in batches)
    with inference(model), task("activation ranges", len(batches)) as advance:
        for batch in batches:
            rounders = {name: _looking(name, tally, batch_size(batch)) for name, tally in tallies.items()}
            with rounded_entering(model, sites, rounders):
                predict(model, batch, forward)
            advance()
    missing = [name for name, tally in tallies.items() if not tally.count]
    if missing:
        raise PlanError(f"no calibration batch brings anything to '{missing[0]}'; leave it out of the activation sites")
    return tallies, tuple(math.ceil(tallies[name].count / samples) for name in names)


def _looking(name: str, tally: RangeTally, samples: int) -> Callable[..., Any]:
    """Return a rounder that notes what comes and hands it on as it is."""

    def look(*values: Tensor) -> Any:
        for each in values:
            if each.is_floating_point() and each.numel():
                tally.add(name, each, samples)
        return values[0] if len(values) == 1 else values

    return look


def _fitted(grid: ActivationGrid, seen: RangeTally, name: str, kind: str) -> ActivationQuantizer:
    scale = NOT_SEEN if grid.dynamic else fit_scale(seen.result(), grid)
    return ActivationQuantizer(grid, scale, kind.startswith("conv"), name)


def _callers(model: nn.Module, names: Sequence[str]) -> dict[str, tuple[nn.Module, ...]]:
    sites = {site.name: site for site in find_sites(model)}
    return {name: callers(model, sites, name) for name in names}


def _modules(where: Mapping[str, tuple[nn.Module, ...]]) -> Iterator[nn.Module]:
    for modules in where.values():
        yield from modules
