"""What does each choice cost, judged by whole plans that were really deployed?

Damage at few bits is not what single layers do to the float net: layers act together, and rounding and norm correction
mend much of it. So random plans of about the budget are deployed and compared with the float model, and Bayesian
regression (`geoquant.sensitivity.beliefs`) shares their damages out among the choices, starting from what a cheap
predictor says of them at the float model. Plans are drawn until the regression predicts each one well enough from all
others. The table is good for plans of about this budget, and only for the pipeline that it was measured through. Needs
no labels.

A net that is sure of nearly all its answers has nearly all of its divergence in a few samples, so that the mean over a
few hundred of them is mostly luck: of two plans, one half of the samples hardly says which the other half finds worse.
Flatter predictions, softmax(z/T), hear every sample and every class; at high temperature T²·KL becomes half the
variance of the logits' changes, and its luck is ten times smaller. Which temperature is best for *this* model is asked
of the plans themselves: the one by which one half of the samples best ranks them by the other half's divergence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata
from torch import Tensor

from geoquant.evaluation import logits
from geoquant.progress import task
from geoquant.sensitivity.averaging import Array, rising
from geoquant.sensitivity.beliefs import Beliefs, Columns, paired
from geoquant.sensitivity.deploying import Deploy, round_to_nearest, softened_divergences
from geoquant.sensitivity.fit import Fit
from geoquant.sensitivity.operating_point import random_columns, stored_bits, thrifty_columns
from geoquant.sensitivity.protocol import PREDICTORS, DamageTable, Predictor, Subject, table

Damages = tuple[Array, Array]
"""Of one plan: divergences (temperatures, samples), and predictions in each sample (samples,)."""
LEAST = 24
"""Plans before it is asked how well the regression does."""
TEMPERATURES = (1.0, 4.0, 16.0)
"""Of the predictions that are compared; 1 is the divergence itself."""


@dataclass(frozen=True, eq=False)
class Sampled:
    """What was learned from deployed plans.

    Attributes:
        beliefs: about the damage of every choice, nats per prediction.
        missed: root mean square by which the regression misses a plan that it has not seen, over the spread of plans;
            infinite where too few were deployed to tell.
        temperature: of the predictions by which plans were compared; damages are scaled to those at temperature 1.
        cost: forward-equivalents.
        samples: on which each plan was measured.
    """

    beliefs: Beliefs
    missed: float
    temperature: float
    cost: float
    samples: int


class SampledPlans:
    """Damage of each choice in plans of `average_bits`, from deployed random plans; nats per prediction.

    Args:
        average_bits: about which budget the plans are drawn.
        deploy: maps a grid per site to a quantized model of its own, through the pipeline that will deploy; by default
            sites are rounded to nearest.
        prior: what is believed before any plan was deployed, up to a factor; FIT when None, which scores every site.
            Where it applies, `modelopt_gradient` starts nearer to the truth.
        plans: how many are deployed at most.
        tolerance: no more are deployed once plans are missed by less than this share of their spread (see `Sampled`).
        deploy_cost: forward-equivalents of one call of `deploy`.
    """

    name = "sampled_plans"
    unit = "nats per prediction"

    def __init__(
        self,
        average_bits: float = 3.0,
        deploy: Deploy | None = None,
        *,
        prior: Predictor | None = None,
        plans: int = 4 * LEAST,
        tolerance: float = 0.25,
        deploy_cost: float = 0.0,
    ) -> None:
        self.average_bits, self.deploy, self.plans = average_bits, deploy, plans
        self.prior: Predictor = Fit() if prior is None else prior
        self.tolerance, self.deploy_cost = tolerance, deploy_cost

    def estimated_cost(self, subject: Subject) -> float:
        """Return the cost of half as many plans as are allowed."""
        return (
            self.prior.estimated_cost(subject)
            + 1
            + (1 + self.deploy_cost) * max(min(self.plans, LEAST), self.plans / 2)
        )

    def measure(self, subject: Subject) -> DamageTable:
        """Return expected damages, rising with a choice's weight error; a site's best choice counts as zero."""
        found = self.sample(subject)
        rows = zip(found.beliefs.mean(), subject.squared_errors, strict=True)
        damage = np.stack([rising(row, errors) for row, errors in rows])
        damage -= damage.min(1, keepdims=True)
        return table(self.name, self.unit, subject, damage, found.beliefs.stderr(), found.cost, found.samples)

    def sample(self, subject: Subject) -> Sampled:
        """Deploy plans and learn from them."""
        generator = np.random.default_rng([subject.seed, round(1000 * self.average_bits)])
        prior = self.prior.measure(subject)
        wanted = logits(subject.model, subject.batches, subject.forward)
        cost, weights = stored_bits(subject), sum(site.weights for site in subject.sites)
        order = np.argsort(cost.sum(0), kind="stable")
        seen = [thrifty_columns(subject, self.average_bits)]
        damages = [self._damages(subject, seen[0], wanted)]
        with task("deploying random plans", self.plans) as advance:
            advance()
            beliefs, temperature = learned(np.array(prior.damage), seen, damages)
            missed = math.inf
            while len(seen) < self.plans and missed > self.tolerance:
                drawn = random_columns(cost[:, order], weights, self.average_bits, generator)
                seen.append(tuple(int(order[column]) for column in drawn))
                damages.append(self._damages(subject, seen[-1], wanted))
                beliefs, temperature = learned(np.array(prior.damage), seen, damages)
                missed = beliefs.missed() if len(seen) >= LEAST else math.inf
                advance()
        spent = prior.cost + 1 + (1 + self.deploy_cost) * len(seen)
        return Sampled(beliefs, missed, temperature, spent, subject.samples)

    def _damages(self, subject: Subject, columns: Columns, wanted: list[Tensor]) -> Damages:
        """Deploy one plan; return its divergence at every temperature, sample by sample."""
        grids = tuple(subject.grids[column] for column in columns)
        deployed = round_to_nearest(subject, grids) if self.deploy is None else self.deploy(grids)
        return softened_divergences(subject, deployed, wanted, TEMPERATURES)


def learned(predicted: Array, plans: Sequence[Columns], damages: Sequence[Damages]) -> tuple[Beliefs, float]:
    """Return what plans say about the choices, by the temperature that tells most, and that temperature.

    Args:
        predicted: (sites, grids) what a predictor says, in any unit.
        plans: deployed plans; the first is what the others are compared with.
        damages: what each of them does.
    """
    values, weights = np.stack([each for each, _ in damages]), damages[0][1]
    best = telling(values, weights) if len(plans) > LEAST // 2 else len(TEMPERATURES) - 1
    means = np.einsum("ptn,n->pt", values, weights) / weights.sum()
    total = float(means[:, best].sum())
    chosen = values[:, best] * (float(means[:, 0].sum()) / total if total > 0 else 1.0)
    beliefs = Beliefs.of(predicted, plans[0], float(np.average(chosen[0], weights=weights)))
    for columns, own in zip(plans[1:], chosen[1:], strict=True):
        beliefs = beliefs.after(columns, *paired(own, chosen[0], weights))
    return beliefs, TEMPERATURES[best]


def telling(values: Array, weights: Array) -> int:
    """Return the temperature by which one half of the samples best ranks plans by the other half's divergence.

    Args:
        values: (plans, temperatures, samples), the first temperature being 1.
        weights: (samples,) predictions in each.

    >>> sure = np.tile([[0.0, 3.0, 0.0, 1.0]], (3, 1)) * [[1], [1], [2]]    # all plans look alike in two samples
    >>> soft = np.outer([1.0, 2.0, 3.0], np.ones(4))
    >>> telling(np.stack([sure, soft], axis=1), np.ones(4))
    1
    """
    halves = [np.arange(len(weights)) % 2 == part for part in (0, 1)]
    means = [values[..., half] @ weights[half] for half in halves]
    ranks = [np.apply_along_axis(rankdata, 0, mean) for mean in means]
    agreement = [
        sum(_correlation(ranks[half][:, column], ranks[1 - half][:, 0]) for half in (0, 1))
        for column in range(values.shape[1])
    ]
    return int(np.argmax(agreement))


def _correlation(first: Array, second: Array) -> float:
    """Return Pearson's correlation, 0 where one of them is constant."""
    a, b = first - first.mean(), second - second.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale > 0 else 0.0


PREDICTORS.register(SampledPlans.name, SampledPlans())
