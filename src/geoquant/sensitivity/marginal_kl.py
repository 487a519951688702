"""What does moving one layer to another grid do *here*, with all other layers quantized as the plan says?

Marginal damage around an operating plan: the change of KL(float ‖ quantized) when one site leaves its grid in the
plan, everything else staying on it. One-layer damage at the float point misses what layers do to one another, and at
two and three bits that is most of it. Measured through the pipeline that deploys plans, where one is given: `deploy`
maps a grid per site to a quantized model (rounding, norm correction). Differences are taken sample by sample, so their
standard errors are small, and decide how many samples each choice gets. First order around the plan: two sites that
move together may do more or less than the sum. Needs no labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

from geoquant.arrays import Floats
from geoquant.errors import GridError
from geoquant.evaluation import Mean, WeightedMean, kl_per_sample
from geoquant.grids import Grid
from geoquant.models import Replay, get_weight, inference, predict, prediction_mask, temporarily
from geoquant.progress import task
from geoquant.sensitivity.averaging import rising
from geoquant.sensitivity.deploying import Deploy, divergences, round_to_nearest
from geoquant.sensitivity.operating_point import thrifty_columns
from geoquant.sensitivity.protocol import PREDICTORS, DamageTable, Subject, table


@dataclass(frozen=True, eq=False)
class Marginals:
    """Marginal damages around an operating plan.

    Attributes:
        base: the grid of each site in the plan.
        base_kl: damage of the plan itself, nats per prediction.
        change: (sites, grids), change of damage when that site alone moves to that grid; 0 at the plan's own.
        stderr: (sites, grids), of the paired differences.
        samples: (sites, grids), how many each choice got.
        cost: forward-equivalents.
    """

    base: tuple[Grid, ...]
    base_kl: Mean
    change: Floats
    stderr: Floats
    samples: Floats
    cost: float

    def damage(self, columns: Sequence[int]) -> float:
        """Predict the damage of the plan with site i at grid ``columns[i]``: the base plan's plus all changes."""
        return self.base_kl.value + float(self.change[np.arange(len(columns)), list(columns)].sum())


class MarginalKL:
    """Extra damage of each choice over the site's best one, all other sites as in the plan; nats per prediction.

    Args:
        base: the operating plan, a grid per site of the subject; by default the plan of least squared weight error at
            `average_bits`.
        deploy: maps a grid per site to a quantized model of its own, through the pipeline that will deploy; by default
            sites are rounded to nearest. It is called once for the plan and once per grid (every site on it), and
            the moved site's weights are taken from there.
        exact: deploy every single move as a whole instead, so that norms are corrected for it too; one call of
            `deploy` and one forward per choice.
        average_bits: budget of the default plan.
        tolerance: a choice gets no more samples once its standard error is below this share of its change, or of the
            plan's damage per site.
        deploy_cost: forward-equivalents of one call of `deploy`.
    """

    name = "marginal_kl"
    unit = "nats per prediction"

    def __init__(
        self,
        base: Sequence[str | Grid] | None = None,
        deploy: Deploy | None = None,
        *,
        exact: bool = False,
        average_bits: float = 3.0,
        tolerance: float = 0.1,
        deploy_cost: float = 0.0,
    ) -> None:
        self.base = None if base is None else tuple(Grid.parse(str(grid)) for grid in base)
        self.deploy, self.exact = deploy, exact
        self.average_bits, self.tolerance, self.deploy_cost = average_bits, tolerance, deploy_cost

    def estimated_cost(self, subject: Subject) -> float:
        """Return the middle between what it costs when every choice settles at once, and when none does."""
        base = self.operating_plan(subject)
        moves = [sum(grid != own for grid in subject.grids) for own in base]
        if self.exact and self.deploy is not None:
            return 2 + self.deploy_cost + (1 + self.deploy_cost) * sum(moves)
        with inference(subject.model), Replay(subject.model, subject.batches[0], subject.forward) as replay:
            shares = sum(count * replay.fraction(site) for count, site in zip(moves, subject.sites, strict=True))
        return 2 + shares / 2 + (0.0 if self.deploy is None else self.deploy_cost * (1 + len(subject.grids)))

    def measure(self, subject: Subject) -> DamageTable:
        """Measure all marginal damages; a site's best choice counts as zero.

        Where a grid with the larger weight error came out better, which is luck of the samples more often than not, the
        two share their mean: a solver would pick the luckiest.
        """
        found = self.marginals(subject)
        rows = zip(found.change, subject.squared_errors, strict=True)
        damage = np.stack([rising(change, errors) for change, errors in rows])
        damage -= damage.min(1, keepdims=True)
        return table(self.name, self.unit, subject, damage, found.stderr, found.cost, int(found.samples.max()))

    def operating_plan(self, subject: Subject) -> tuple[Grid, ...]:
        """Return the plan around which is measured, a grid per site of the subject."""
        if self.base is None:
            return tuple(subject.grids[column] for column in thrifty_columns(subject, self.average_bits))
        if len(self.base) != len(subject.sites):
            raise GridError(f"the operating plan holds {len(self.base)} grids for {len(subject.sites)} sites")
        return self.base

    def marginals(self, subject: Subject) -> Marginals:
        """Measure how KL to the float model changes when one site leaves the operating plan.

        Raises:
            GridError: the plan has not one grid per site.
        """
        base = self.operating_plan(subject)
        if self.exact and self.deploy is not None:
            return _deployed_moves(subject, base, self.deploy, self.deploy_cost)
        deployed = round_to_nearest(subject, base) if self.deploy is None else self.deploy(base)
        moves = _moved_weights(subject, base, self.deploy)
        run = _Run(subject, deployed, moves, self.tolerance)
        deployments = 0 if self.deploy is None else 1 + len(subject.grids)
        return run.result(base, deployments * self.deploy_cost)


# Weights are made when they are needed: all choices of a large model together would not fit.
Moves = tuple[tuple[Callable[[], Tensor] | None, ...], ...]


def _moved_weights(subject: Subject, base: Sequence[Grid], deploy: Deploy | None) -> Moves:
    """Return the weight of every move, None where the site stays on its grid."""
    columns: list[list[Callable[[], Tensor] | None]] = []
    for column, grid in enumerate(subject.grids):
        whole = None if deploy is None else deploy((grid,) * len(base))
        weights: list[Callable[[], Tensor] | None] = []
        for row, site in enumerate(subject.sites):
            if base[row] == grid:
                weights.append(None)
            elif whole is None:
                weights.append(partial(_nearest, subject, row, column))
            else:
                weights.append(get_weight(whole, site).clone)
        columns.append(weights)
    return tuple(zip(*columns, strict=True))


def _nearest(subject: Subject, row: int, column: int) -> Tensor:
    return subject.sites[row].restore(subject.quantized[row][column].dequantize())


@dataclass(eq=False)
class _Choice:
    """One move: its weight, and the paired differences so far."""

    row: int
    column: int
    weight: Callable[[], Tensor]
    difference: WeightedMean = field(default_factory=WeightedMean)
    settled: bool = False

    def settle(self, tolerance: float, floor: float) -> None:
        found = self.difference.result()
        self.settled = found.stderr <= tolerance * max(abs(found.value), floor)


class _Run:
    """Goes through the batches; choices drop out as they are known well enough."""

    def __init__(self, subject: Subject, deployed: nn.Module, moves: Moves, tolerance: float) -> None:
        self._subject, self._deployed, self._tolerance = subject, deployed, tolerance
        self._choices = [
            _Choice(row, column, weight)
            for row, weights in enumerate(moves)
            for column, weight in enumerate(weights)
            if weight is not None
        ]
        self._base = WeightedMean()
        self._cost = 0.0

    def result(self, base: tuple[Grid, ...], extra_cost: float) -> Marginals:
        with (
            inference(self._subject.model),
            inference(self._deployed),
            task("marginal KL", len(self._subject.batches)) as advance,
        ):
            for batch in self._subject.batches:
                self._visit(batch)
                advance()
        shape = (len(self._subject.sites), len(self._subject.grids))
        change, stderr, samples = np.zeros(shape), np.zeros(shape), np.full(shape, float(self._base.samples))
        for choice in self._choices:
            found = choice.difference.result()
            change[choice.row, choice.column] = found.value
            stderr[choice.row, choice.column] = found.stderr
            samples[choice.row, choice.column] = found.samples
        cost = self._cost / self._subject.samples + extra_cost
        return Marginals(base, self._base.result(), change, stderr, samples, cost)

    def _visit(self, batch: Any) -> None:
        """Measure every unsettled move on one batch, against the plan on the same samples."""
        wanted = predict(self._subject.model, batch, self._subject.forward)
        mask = prediction_mask(batch, wanted)
        with Replay(self._deployed, batch, self._subject.forward) as replay:
            plan, weights = kl_per_sample(wanted, replay.reference, mask)
            self._base.add(plan, weights)
            self._cost += 2.0 * len(weights)
            for choice in self._choices:
                if not choice.settled:
                    site = self._subject.sites[choice.row]
                    with temporarily(self._deployed, site, choice.weight()):
                        moved, _ = kl_per_sample(wanted, replay.run(site), mask)
                    choice.difference.add(moved - plan, weights)
                    self._cost += replay.fraction(site) * len(weights)
        self._settle()

    def _settle(self) -> None:
        """Let choices drop out, once a quarter of the samples was seen: fewer say little of their own spread."""
        if 4 * self._base.samples < self._subject.samples or self._base.samples < 2:
            return
        floor = self._base.result().value / len(self._subject.sites)
        for choice in self._choices:
            if not choice.settled:
                choice.settle(self._tolerance, floor)


def _deployed_moves(subject: Subject, base: tuple[Grid, ...], deploy: Deploy, deploy_cost: float) -> Marginals:
    """Deploy every move as a whole and compare with the plan, sample by sample."""
    with inference(subject.model):
        wanted = [predict(subject.model, batch, subject.forward) for batch in subject.batches]
    plan = divergences(subject, deploy(base), wanted)
    base_kl = WeightedMean()
    for values, weights in plan:
        base_kl.add(values, weights)
    change = np.zeros((len(subject.sites), len(subject.grids)))
    stderr = np.zeros_like(change)
    moves = [
        (row, column, grid)
        for row in range(len(base))
        for column, grid in enumerate(subject.grids)
        if grid != base[row]
    ]
    with task("marginal KL, every move deployed", len(moves)) as advance:
        for row, column, grid in moves:
            mean = WeightedMean()
            found = divergences(subject, deploy((*base[:row], grid, *base[row + 1 :])), wanted)
            for (moved, weights), (stayed, _) in zip(found, plan, strict=True):
                mean.add(moved - stayed, weights)
            result = mean.result()
            change[row, column], stderr[row, column] = result.value, result.stderr
            advance()
    cost = 2 + deploy_cost + (1 + deploy_cost) * len(moves)
    return Marginals(base, base_kl.result(), change, stderr, np.full(change.shape, base_kl.samples, float), cost)


PREDICTORS.register(MarginalKL.name, MarginalKL())
