"""Is there a low-loss codeword near the float weights, and does a known way of rounding find it?

Candidates are deployed on copies and judged on samples that took no part in making them: nearest rounding, GPTQ
(second-order reconstruction), the default pipeline (GPTQ with corrected norms), a short straight-through walk that may
only choose between the two levels around each weight, and a short training of codes, scales and norms. All of them
look at the float model's answers, not at labels. That none is found proves nothing: the search is short.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from geoquant.basin.directions import Cell
from geoquant.basin.rise import LossRise, Point
from geoquant.evaluation import Mean
from geoquant.models import Forward, get_weight
from geoquant.plan import Plan
from geoquant.progress import task
from geoquant.quantize import NetworkTuning, quantize, quantized_state

NEAREST, SECOND_ORDER, PIPELINE = "nearest", "gptq", "gptq, norms corrected"
NEIGHBOURS, TRAINED = "neighbours", "short training"


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

    Attributes:
        neighbour_steps: of Adam, one batch each, for the walk between neighbours; 0 leaves it out.
        training_steps: the same for the short training; 0 leaves it out.
        neighbour_rate: learning rate of the places of weights between neighbours, in gaps between levels.
        training_rate: the same in the short training.
        scales: learning rate of scales in the short training, relative.
        free: learning rate of norms and biases in the short training.
    """

    neighbour_steps: int = 40
    training_steps: int = 100
    neighbour_rate: float = 0.05
    training_rate: float = 0.02
    scales: float = 5e-3
    free: float = 5e-3


@dataclass(frozen=True, eq=False)
class CodewordSearch:
    """Deploys candidates of one plan.

    Attributes:
        model: the float model.
        plan: a grid per site.
        fit: batches that candidates are made with.
        judge: the loss, on other samples.
        settings: of the walks.
        forward: how to call the model.
        seed: of the order of batches.
    """

    model: nn.Module
    plan: Plan
    fit: Sequence[Any]
    judge: LossRise
    settings: WalkSettings
    forward: Forward | None = None
    seed: int = 0

    def run(self) -> tuple[tuple[Candidate, Point], ...]:
        """Judge all candidates; return each with its weights by parameter."""
        cell = Cell.of(self.model, self.plan)
        count = 3 + (self.settings.neighbour_steps > 0) + (self.settings.training_steps > 0)
        found = []
        with task("looking for low-loss codewords", count) as advance:
            for name, candidate, weights_only in self._candidates():
                point = {site.parameter: get_weight(candidate, site).clone() for site in cell.sites}
                steps = cell.steps(cell.towards(point))
                found.append((Candidate(name, self.judge.of(candidate), steps, weights_only), point))
                advance()
        return tuple(found)

    def _candidates(self) -> Iterator[tuple[str, nn.Module, bool]]:
        nearest = self._quantized(rounding="nearest", norms="none")
        yield NEAREST, nearest, True
        settings = self.settings
        if settings.neighbour_steps:
            walk = NetworkTuning(settings.neighbour_steps, settings.neighbour_rate, 0.0, 0.0, neighbours=True)
            yield NEIGHBOURS, self._walk_(nearest, walk), True
        yield SECOND_ORDER, self._quantized(rounding="gptq", norms="none"), True
        whole = self._quantized(rounding="gptq", norms="relative")
        yield PIPELINE, whole, False
        if settings.training_steps:
            training = NetworkTuning(settings.training_steps, settings.training_rate, settings.scales, settings.free)
            yield TRAINED, self._walk_(whole, training), False

    def _quantized(self, **recipe: str) -> nn.Module:
        return quantize(self.model, self.plan, self.fit, forward=self.forward, seed=self.seed, **recipe)

    def _walk_(self, model: nn.Module, tuning: NetworkTuning) -> nn.Module:
        """Train `model` straight through towards the float model's answers; return it."""
        matrices = quantized_state(model).matrices
        tuning(self.model, model, self.plan.inventory.sites, matrices, self.fit, self.forward, self.seed)
        return model
