"""Is there a low-loss codeword near the float weights, and does a known way of rounding find it?

Candidates are deployed on copies and judged on samples that took no part in making them: nearest rounding, GPTQ
(second-order reconstruction), the default pipeline (GPTQ and descent with corrected norms), a short straight-through
walk that may only choose between the two levels around each weight, and a short training of codes, scales and norms.
All of them look at the float model's answers, not at labels. That none is found proves nothing: the search is short.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from geoquant.basin.directions import Cell
from geoquant.basin.rise import LossRise, Point
from geoquant.evaluation import Mean
from geoquant.geometry.pieces import split
from geoquant.models import Forward, get_weight
from geoquant.plan import Plan
from geoquant.progress import task
from geoquant.quantize import NetworkTuning, quantize, quantized_state

NEAREST, SECOND_ORDER, PIPELINE = "nearest", "gptq", "descent, norms corrected"
NEIGHBOURS, TRAINED = "neighbours", "short training"
CLEAR = 0.5
"""Share of the tolerance up to which a codeword is clearly inside: nothing dearer is tried then."""


@dataclass(frozen=True)
class Candidate:
    """A codeword that was deployed and judged.

    Attributes:
        name: how it was found.
        rise: of the loss over the float model's, on samples that took no part.
        steps: distance from the float weights in grid steps, root mean square.
        weights_only: whether norms, biases and scales are those of nearest rounding or of the float model, so that the
            rise is that of a point in the float model's own landscape.
    """

    name: str
    rise: Mean
    steps: float
    weights_only: bool


@dataclass(frozen=True)
class WalkSettings:
    """How the two walks are taken.

    The rates of the short training are those at which a hundred steps still bring a residual net nearer to its float
    answers; at four times as much they scatter its codes, and the walk ends where it began.

    Attributes:
        neighbour_steps: of Adam, one batch each, for the walk between neighbours; 0 leaves it out.
        training_steps: the same for the short training; 0 leaves it out.
        neighbour_rate: learning rate of the places of weights between neighbours, in gaps between levels.
        training_rate: the same in the short training.
        scales: learning rate of scales in the short training, relative.
        free: learning rate of norms and biases in the short training.
        batch: samples in a step at most.
        predictions: the same for predictions, of which a window of text holds many. Larger batches are cut.
        exhaustive: whether everything is tried, also where something cheaper is clearly inside the basin.
    """

    neighbour_steps: int = 40
    training_steps: int = 100
    neighbour_rate: float = 0.05
    training_rate: float = 0.005
    scales: float = 1e-3
    free: float = 2e-3
    batch: int = 64
    predictions: int = 1024
    exhaustive: bool = False


@dataclass(frozen=True, eq=False)
class CodewordSearch:
    """Deploys candidates of one plan.

    Attributes:
        model: the float model.
        plan: a grid per site.
        fit: batches that candidates are made with.
        judge: the loss, on other samples.
        tolerance: rise up to which a codeword is inside the basin.
        settings: of the walks.
        forward: how to call the model.
        seed: of the order of batches.
    """

    model: nn.Module
    plan: Plan
    fit: Sequence[Any]
    judge: LossRise
    tolerance: float
    settings: WalkSettings
    forward: Forward | None = None
    seed: int = 0

    def run(self) -> tuple[tuple[Candidate, Point], ...]:
        """Judge candidates, cheap ones first, until one is clearly inside; return each with its weights."""
        cell = Cell.of(self.model, self.plan)
        found: list[tuple[Candidate, Point]] = []

        def judged(name: str, candidate: nn.Module, weights_only: bool) -> Mean:
            point = {site.parameter: get_weight(candidate, site).clone() for site in cell.sites}
            rise = self.judge.of(candidate)
            found.append((Candidate(name, rise, cell.steps(cell.towards(point)), weights_only), point))
            advance()
            return rise

        with task("looking for low-loss codewords", 5) as advance:
            self._search(judged)
        return tuple(found)

    def _search(self, judged: Callable[[str, nn.Module, bool], Mean]) -> None:
        settings, everything = self.settings, self.settings.exhaustive
        nearest = self._quantized(rounding="nearest", norms="none")
        if self._clear(judged(NEAREST, nearest, True)) and not everything:
            return
        second = judged(SECOND_ORDER, self._quantized(rounding="gptq", norms="none"), True)
        whole = self._quantized(effort="balanced")
        rounded = judged(PIPELINE, whole, False)
        if settings.neighbour_steps and (everything or second.value > self.tolerance):
            walk = NetworkTuning(settings.neighbour_steps, settings.neighbour_rate, 0.0, 0.0, neighbours=True)
            judged(NEIGHBOURS, self._walk_(nearest, walk), True)
        if settings.training_steps and (everything or not self._clear(rounded)):
            training = NetworkTuning(settings.training_steps, settings.training_rate, settings.scales, settings.free)
            judged(TRAINED, self._walk_(whole, training), False)

    def _clear(self, rise: Mean) -> bool:
        return rise.value <= CLEAR * self.tolerance

    def _quantized(self, **recipe: str) -> nn.Module:
        return quantize(self.model, self.plan, self.fit, forward=self.forward, seed=self.seed, **recipe)

    def _walk_(self, model: nn.Module, tuning: NetworkTuning) -> nn.Module:
        """Train `model` straight through towards the float model's answers; return it."""
        matrices = quantized_state(model).matrices
        size = max(1, min(self.settings.batch, int(self.settings.predictions / max(self.judge.per_sample, 1.0))))
        pieces = [piece for batch in self.fit for piece in split(batch, size)]
        tuning(self.model, model, self.plan.inventory.sites, matrices, pieces, self.forward, self.seed)
        return model
