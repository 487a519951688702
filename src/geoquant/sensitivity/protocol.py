"""What does each choice cost? One protocol for every way to answer.

A predictor looks at a `Subject` (model, sites, grids, batches) and returns a `DamageTable`: for each
site and grid the damage it expects when that site alone moves to that grid, with a standard error and
what the answer cost. Tables whose unit is None rank choices; only tables in nats can be held against a
budget of damage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from geoquant.arrays import Floats
from geoquant.errors import LayerNameError, suggest
from geoquant.grids import Grid, QuantizedMatrix
from geoquant.models import Site, batch_size, get_weight
from geoquant.registry import Registry


@dataclass(frozen=True, eq=False)
class Subject:
    """What a predictor may look at. Predictors leave the model exactly as it was.

    Attributes:
        model: the float model, in eval mode while it is measured.
        sites: the sites to measure.
        grids: the choices at every site.
        batches: calibration batches, already validated.
        forward: how to call the model, or None for the usual ways.
        seed: of every random draw.
    """

    model: nn.Module
    sites: tuple[Site, ...]
    grids: tuple[Grid, ...]
    batches: tuple[Any, ...]
    forward: Callable[[nn.Module, Any], Tensor] | None = None
    seed: int = 0

    @cached_property
    def quantized(self) -> tuple[tuple[QuantizedMatrix, ...], ...]:
        """Every site's weight rounded to nearest on every grid: [site][grid], kept as codes."""
        with torch.inference_mode(False), torch.no_grad():  # kept for callers that differentiate
            return tuple(
                tuple(grid.quantize(site.matrix(get_weight(self.model, site)).float()) for grid in self.grids)
                for site in self.sites
            )

    def displacement(self, row: int, column: int) -> Tensor:
        """Return Q(w) − w at site `row` on grid `column`, in the shape and type of the weight."""
        site = self.sites[row]
        with torch.inference_mode(False), torch.no_grad():
            weight = get_weight(self.model, site)
            return site.restore(self.quantized[row][column].dequantize()).to(weight) - weight

    @cached_property
    def samples(self) -> int:
        """Number of calibration samples."""
        return sum(batch_size(batch) for batch in self.batches)

    @cached_property
    def squared_errors(self) -> Floats:
        """‖Q(w) − w‖² per (site, grid), in squared weight units."""
        errors = np.empty((len(self.sites), len(self.grids)))
        for i, site in enumerate(self.sites):
            weight = site.matrix(get_weight(self.model, site)).double()
            for j, rounded in enumerate(self.quantized[i]):
                errors[i, j] = float((rounded.dequantize().double() - weight).square().sum())
        return errors


@dataclass(frozen=True)
class DamageTable:
    """Damage of each site at each grid, by one predictor.

    Attributes:
        predictor: the name of the method.
        unit: "nats per prediction", or None when the scores only rank.
        sites: names of the sites (rows).
        grids: canonical names of the grids (columns).
        damage: (sites, grids).
        stderr: (sites, grids); 0 where the score is exact for the given weights.
        cost: what measuring took, in forward-equivalents (see `docs/concepts.md`).
        samples: calibration samples looked at; 0 for methods that need no data.
    """

    predictor: str
    unit: str | None
    sites: tuple[str, ...]
    grids: tuple[str, ...]
    damage: tuple[tuple[float, ...], ...]
    stderr: tuple[tuple[float, ...], ...]
    cost: float
    samples: int

    def row(self, site: str) -> tuple[float, ...]:
        """Return the damages of one site, a value per grid."""
        if site not in self.sites:
            raise LayerNameError(f"no damage was measured for '{site}'{suggest(site, self.sites)}")
        return self.damage[self.sites.index(site)]


def table(
    predictor: str,
    unit: str | None,
    subject: Subject,
    damage: Floats,
    stderr: Floats,
    cost: float,
    samples: int,
) -> DamageTable:
    """Freeze arrays (sites, grids) into a `DamageTable`."""
    return DamageTable(
        predictor,
        unit,
        tuple(site.name for site in subject.sites),
        tuple(str(grid) for grid in subject.grids),
        tuple(tuple(row) for row in damage.tolist()),
        tuple(tuple(row) for row in stderr.tolist()),
        float(f"{cost:.9g}"),  # shares of forwards, added in whatever order
        samples,
    )


class Predictor(Protocol):
    """A way to predict damage.

    Laws (the contract suite holds every registered predictor to them): the model is bit-identical
    afterwards; the same subject gives the same table; damages are finite; the stated cost is what
    `estimated_cost` said, within a factor of two. A predictor with ``by_site = True`` promises besides that a site's
    row does not depend on which other sites are measured (`geoquant.sensitivity.sharding`), and may name in
    ``fixed_cost`` what every measurement costs whatever the sites are.
    """

    @property
    def name(self) -> str:
        """The name it is registered under."""
        ...

    @property
    def unit(self) -> str | None:
        """Unit of its damages, or None when they only rank."""
        ...

    def estimated_cost(self, subject: Subject) -> float:
        """Say, before starting, what `measure` will cost in forward-equivalents."""
        ...

    def measure(self, subject: Subject) -> DamageTable:
        """Return the damage of every (site, grid)."""
        ...


PREDICTORS: Registry[Predictor] = Registry("sensitivity predictor")
