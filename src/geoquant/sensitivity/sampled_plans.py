"""What does each choice cost, judged by whole plans that were really deployed?

Damage at few bits is not what single layers do to the float net: layers act together, and rounding and norm correction
mend much of it. So random plans of about the budget are deployed and compared with the float model, and Bayesian
regression (`geoquant.sensitivity.beliefs`) shares their damages out among the choices, starting from what a cheap
predictor says of them at the float model. Plans are drawn until the regression predicts each one well enough from all
others. The table is good for plans of about this budget, and only for the pipeline that it was measured through. Needs
no labels.

Plans are compared by softened predictions where the divergence itself is mostly luck, as it is for a net that is sure
of nearly all its answers (`geoquant.evaluation.Divergence`); damages are then scaled to the divergence of all plans
together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import nn

from geoquant.evaluation import Divergence
from geoquant.progress import task
from geoquant.sensitivity.averaging import rising
from geoquant.sensitivity.beliefs import Beliefs, Columns, paired
from geoquant.sensitivity.deploying import Deploy, round_to_nearest
from geoquant.sensitivity.fit import Fit
from geoquant.sensitivity.operating_point import random_columns, stored_bits, thrifty_columns
from geoquant.sensitivity.protocol import PREDICTORS, DamageTable, Predictor, Subject, table

LEAST = 24
"""Plans before it is asked how well the regression does."""


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
        divergence = Divergence(subject.model, subject.batches, subject.forward)
        cost, weights = stored_bits(subject), sum(site.weights for site in subject.sites)
        order = np.argsort(cost.sum(0), kind="stable")
        start = thrifty_columns(subject, self.average_bits)
        heat, first = divergence.steady(self._deployed(subject, start))
        values = [first]
        beliefs = Beliefs.of(np.array(prior.damage), start, float(np.average(first[1], weights=divergence.weights)))
        missed = math.inf
        with task("deploying random plans", self.plans) as advance:
            advance()
            while len(values) < self.plans and missed > self.tolerance:
                drawn = random_columns(cost[:, order], weights, self.average_bits, generator)
                columns = tuple(int(order[column]) for column in drawn)
                values.append(divergence.of(self._deployed(subject, columns), 1.0, heat))
                beliefs = beliefs.after(columns, *paired(values[-1][1], first[1], divergence.weights))
                missed = beliefs.missed() if len(values) >= LEAST else math.inf
                advance()
        kl, steady = np.stack(values).mean(0) @ divergence.weights
        spent = prior.cost + 1 + (1 + self.deploy_cost) * len(values)
        scaled = beliefs.scaled(float(kl / steady)) if steady > 0 else beliefs
        return Sampled(scaled, missed, heat, spent, subject.samples)

    def _deployed(self, subject: Subject, columns: Columns) -> nn.Module:
        grids = tuple(subject.grids[column] for column in columns)
        return round_to_nearest(subject, grids) if self.deploy is None else self.deploy(grids)


PREDICTORS.register(SampledPlans.name, SampledPlans())
