"""How far do the activations move when one layer is rounded? Normalised squared error at the layers' outputs.

The score of MCT's mixed precision: with one site on one grid, everything behind it is run again, and
‖a_q − a‖²/‖a‖² is averaged over the interest points (the output of every layer that holds a site); the same distance
at the logits is added. Measured, not modelled, and blind to what the network does with a distance: a layer whose
error later layers forget counts like one that turns answers around. Needs no labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from geoquant.arrays import Floats
from geoquant.models import Replay, batch_size, evaluating, inference, temporarily
from geoquant.progress import task
from geoquant.sensitivity.averaging import sample_mean
from geoquant.sensitivity.protocol import PREDICTORS, DamageTable, Subject, table


class Nmse:
    """Mean normalised squared error over interest points plus that of the logits; ranks only."""

    name = "nmse"
    unit = None

    def estimated_cost(self, subject: Subject) -> float:
        """Return 2 + choices × the share of the network behind each site, summed over sites."""
        with inference(subject.model), Replay(subject.model, subject.batches[0], subject.forward) as replay:
            return 2 + len(subject.grids) * sum(replay.fraction(site) for site in subject.sites)

    def measure(self, subject: Subject) -> DamageTable:
        """Run every (site, grid) on every batch and compare on the way; keeps one batch's outputs of all layers."""
        rows: list[Floats] = []
        shares: list[float] = []
        with inference(subject.model), task(self.name, len(subject.batches) * len(subject.sites)) as advance:
            for batch in subject.batches:
                with Replay(subject.model, batch, subject.forward) as replay:
                    shares.append(sum(replay.fraction(site) for site in subject.sites))
                    rows.append(_measure(subject, batch, replay, advance))
        mean, stderr = sample_mean(rows)
        cost = 2 + len(subject.grids) * float(np.mean(shares))
        return table(self.name, self.unit, subject, mean, stderr, cost, subject.samples)


def _measure(subject: Subject, batch: Any, replay: Replay, advance: Callable[[], None]) -> Floats:
    """Return the scores of one batch, (samples, sites, grids)."""
    samples = batch_size(batch)
    points = interest_points(subject)
    exact = _reference(subject, replay, points)
    found = np.zeros((samples, len(subject.sites), len(subject.grids)))
    for row, site in enumerate(subject.sites):
        for column, rounded in enumerate(subject.quantized[row]):
            distances: list[Tensor] = []

            def compare(name: str, output: Tensor, distances: list[Tensor] = distances) -> None:
                if name in exact and output.shape == exact[name].shape:
                    distances.append(_distance(output, exact[name], samples))

            with temporarily(subject.model, site, site.restore(rounded.dequantize())), _hooked(points, compare):
                logits = replay.run(site)
            total = torch.stack([torch.zeros(samples, dtype=torch.float64), *distances]).sum(0) / max(len(exact), 1)
            found[:, row, column] = (total + _distance(logits, replay.reference, samples)).numpy()
        advance()
    return found


def _reference(subject: Subject, replay: Replay, points: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Return the float outputs at the interest points that are called once; others cannot be told apart later."""
    exact: dict[str, list[Tensor]] = {name: [] for name in points}

    def keep(name: str, output: Tensor) -> None:
        exact[name].append(output.detach().clone())  # later operations may write into it

    with evaluating(subject.model), _hooked(points, keep):
        replay.run(*subject.sites)
    return {name: found[0] for name, found in exact.items() if len(found) == 1}


def interest_points(subject: Subject) -> dict[str, nn.Module]:
    """Return the modules that hold the subject's sites, by name."""
    owners = dict.fromkeys(site.parameter.rpartition(".")[0] for site in subject.sites)
    return {name: subject.model.get_submodule(name) for name in owners}


@contextmanager
def _hooked(points: dict[str, nn.Module], look: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Show `look` the first output tensor of every call of a point."""

    def hook(name: str) -> Callable[..., None]:
        def after(_: nn.Module, __: Any, output: Any) -> None:
            first = output if isinstance(output, Tensor) else next((x for x in output if isinstance(x, Tensor)), None)
            if first is not None:
                look(name, first)

        return after

    handles = [module.register_forward_hook(hook(name)) for name, module in points.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _distance(changed: Tensor, exact: Tensor, samples: int) -> Tensor:
    """Return ‖changed − exact‖²/‖exact‖² of every sample; of the whole where rows are not samples."""
    rows = (samples, -1) if len(exact) == samples else (1, -1)
    error = (changed.double() - exact.double()).square().reshape(rows).sum(1)
    size = exact.double().square().reshape(rows).sum(1).clamp(min=torch.finfo(torch.float32).tiny)
    return (error / size).cpu().expand(samples)


PREDICTORS.register(Nmse.name, Nmse())
